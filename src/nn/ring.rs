//! Streamed frozen matrices of blocks on a device of its own memory: they wait in pinned main memory, and each block is copied
//! to one of two slots on the device while the block before it runs.
//!
//! A block's parts lie packed one behind the other, so that it comes in one copy, queued on a second stream. The copy waits for
//! what the device has been told to compute so far, which includes the last use of its slot; what is computed from then
//! on waits for the copy. The host waits for neither. Nothing is ever copied back.
//!
//! A block for which main memory has no room lies in a file: that of the checkpoint where it has the bytes as the device reads
//! them, else one without a name, as in [`super::stream`]. It is read to pinned memory before it is copied.
//!
//! The device is a [`CopyEngine`]: a GPU, or in tests one that copies as late, or as early, as it may.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use candle_core::{Error, Result};
use indicatif::BinaryBytes;

use super::lent::{BlockKeeper, KeptBlock, PendingBlock, lock};
use super::resident_share::ResidentShare;
use super::stream::{FilePart, Files, SLOTS, spread};
use crate::ops::bytes::{ALIGNMENT, Bytes, LiveBytes, Origin};
use crate::ops::stored::{PlainMatrix, StoredMatrix, Weight};
use crate::process::memory;

#[cfg(feature = "cuda")]
pub mod cuda;

/// Main memory that stays free for all else.
const SPARED: u64 = 4 << 30;

/// Returns the bytes of main memory that blocks may wait in; None if they are unknown.
pub fn main_memory_room() -> Option<u64> {
    memory::free().map(|free| free.bytes.saturating_sub(SPARED))
}

/// Device with memory of its own, and copies to it beside its computations.
pub trait CopyEngine: Send + Sync + 'static {
    /// Matrix without its bytes.
    type Form: Send + Sync;
    /// Main memory that copies read.
    type Host: Send + Sync;
    /// Memory of the device.
    type Slot: Send + Sync;

    /// Returns a matrix as the device reads it: the form, and its parts; None if its parts cannot lie elsewhere.
    fn pack(&self, matrix: &dyn StoredMatrix) -> Option<(Self::Form, Vec<Bytes>)>;

    /// Returns the matrix with its parts at these places of a slot.
    fn unpack(&self, form: &Self::Form, slot: &Arc<Self::Slot>, places: &[Range<usize>]) -> Result<Weight>;

    /// Returns the bytes of main memory that blocks may take; None if that is unknown.
    fn host_room(&self) -> Option<u64>;

    /// Returns the free bytes of the device, if they are known.
    fn room(&self) -> Option<u64>;

    /// Allocates main memory that copies read.
    fn host(&self, bytes: usize) -> Result<Self::Host>;

    /// Returns its bytes, to be filled, once all copies from it are done.
    fn host_bytes<'a>(&self, host: &'a mut Self::Host) -> Result<&'a mut [u8]>;

    /// Allocates memory of the device, counted in `live` while it is there.
    fn slot(&self, bytes: usize, live: &Arc<LiveBytes>) -> Result<Self::Slot>;

    /// Queues a copy of all to the beginning of a slot, behind all that the device has been told to do so far.
    fn copy(&self, host: &Self::Host, slot: &mut Self::Slot) -> Result<()>;

    /// Makes all that the device is told to compute from now on wait for the last copy to a slot.
    fn wait(&self, slot: &Self::Slot) -> Result<()>;
}

/// Keeper of blocks in main memory that run on a device.
pub struct Ring<E: CopyEngine>(Arc<Inner<E>>);

struct Inner<E: CopyEngine> {
    engine: E,
    resident: ResidentShare,
    files: Mutex<Files>,
    reading: Mutex<Reading<E>>,
    blocks: Mutex<Vec<Arc<RingBlock<E>>>>,
    slot_bytes: AtomicUsize,
    /// Slots with the blocks in them, the last used one at the end.
    slots: Mutex<Vec<(usize, Arc<E::Slot>)>>,
    /// Main memory that blocks in files pass through, with its bytes.
    passing: Mutex<Option<(usize, E::Host)>>,
    live: Arc<LiveBytes>,
}

/// The block that is being read.
struct Reading<E: CopyEngine> {
    matrices: Vec<PackedMatrix<E::Form>>,
    parts: Vec<(Range<usize>, Bytes)>,
    bytes: usize,
}

struct PackedMatrix<F> {
    form: F,
    /// Places of its parts in a slot.
    places: Vec<Range<usize>>,
}

/// Place where a block waits.
enum Waiting<H> {
    Pinned(H),
    Filed(Vec<FilePart>),
}

struct RingBlock<E: CopyEngine> {
    ring: Arc<Inner<E>>,
    index: usize,
    matrices: Vec<PackedMatrix<E::Form>>,
    bytes: usize,
    waiting: Waiting<E::Host>,
    stays: AtomicBool,
    /// The matrices of a block that stays on the device.
    here: Mutex<Option<Vec<Weight>>>,
}

impl<E: CopyEngine> Default for Reading<E> {
    fn default() -> Self {
        Self {
            matrices: Vec::new(),
            parts: Vec::new(),
            bytes: 0,
        }
    }
}

impl<E: CopyEngine> Ring<E> {
    /// Blocks that run on the engine's device.
    pub fn new(engine: E, resident: ResidentShare) -> Self {
        Self(Arc::new(Inner {
            engine,
            resident,
            files: Mutex::default(),
            reading: Mutex::default(),
            blocks: Mutex::default(),
            slot_bytes: AtomicUsize::new(0),
            slots: Mutex::default(),
            passing: Mutex::default(),
            live: Arc::default(),
        }))
    }
}

impl<E: CopyEngine> BlockKeeper for Ring<E> {
    fn reads_to_host(&self) -> bool {
        true
    }

    fn take(&self, matrix: Weight, origin: Option<Origin>) -> Result<Option<Weight>> {
        let stored: Arc<dyn StoredMatrix> = match &matrix {
            Weight::Dense(dense) => Arc::new(PlainMatrix::new(dense, origin)?),
            Weight::Stored(stored) => stored.clone(),
        };
        let Some((form, parts)) = self.0.engine.pack(&*stored) else {
            return Ok(Some(matrix));
        };
        let mut reading = lock(&self.0.reading);
        let mut places = Vec::with_capacity(parts.len());
        for part in parts {
            let place = reading.bytes..reading.bytes + part.len();
            reading.bytes = place.end.next_multiple_of(ALIGNMENT);
            places.push(place.clone());
            reading.parts.push((place, part));
        }
        reading.matrices.push(PackedMatrix { form, places });
        Ok(None)
    }

    fn end_block(&self) -> Result<Arc<dyn KeptBlock>> {
        let Reading { matrices, parts, bytes } = std::mem::take(&mut *lock(&self.0.reading));
        let waiting = self.0.waiting(parts, bytes)?;
        let mut blocks = lock(&self.0.blocks);
        let block = Arc::new(RingBlock {
            ring: self.0.clone(),
            index: blocks.len(),
            matrices,
            bytes,
            waiting,
            stays: AtomicBool::new(false),
            here: Mutex::default(),
        });
        blocks.push(block.clone());
        Ok(block)
    }

    fn start(&self) -> Result<String> {
        let blocks = lock(&self.0.blocks);
        let sizes: Vec<usize> = blocks.iter().map(|block| block.bytes).collect();
        let staying = self.0.resident.of(&sizes, SLOTS, self.0.engine.room());
        let streamed = spread(sizes.len() - staying, sizes.len());
        for block in blocks.iter() {
            block.stays.store(!streamed.contains(&block.index), Ordering::Relaxed);
        }
        let slot_bytes = streamed.iter().map(|index| sizes[*index]).max().unwrap_or(0);
        self.0.slot_bytes.store(slot_bytes, Ordering::Relaxed);
        let filed = blocks.iter().filter(|block| matches!(block.waiting, Waiting::Filed(_)));
        let (all, filed) = (sizes.iter().sum::<usize>(), filed.count());
        Ok(format!(
            "the matrices of {} blocks, {}, are in main memory, but {filed} in files: {staying} blocks stay on the device, and two of {} \
             at most pass through it",
            sizes.len(),
            BinaryBytes(all as u64),
            BinaryBytes(slot_bytes as u64)
        ))
    }

    fn release(&self) {
        lock(&self.0.slots).clear();
        for block in lock(&self.0.blocks).iter() {
            lock(&block.here).take();
        }
    }

    fn live(&self) -> Option<Arc<LiveBytes>> {
        Some(self.0.live.clone())
    }
}

/// Place of a block on the device.
enum SlotState<S> {
    /// It is there already.
    Filled(Arc<S>),
    Free(S),
}

impl<E: CopyEngine> Inner<E> {
    /// Puts a block's parts where they wait.
    fn waiting(&self, parts: Vec<(Range<usize>, Bytes)>, bytes: usize) -> Result<Waiting<E::Host>> {
        if self.engine.host_room().is_none_or(|room| room >= bytes as u64) {
            let mut host = self.engine.host(bytes)?;
            let pinned = self.engine.host_bytes(&mut host)?;
            for (place, part) in parts {
                pinned[place].copy_from_slice(&part);
            }
            return Ok(Waiting::Pinned(host));
        }
        let mut files = lock(&self.files);
        let parts = parts.into_iter().map(|(place, part)| {
            let (file, offset) = files.place(&part)?;
            Ok(FilePart { file, offset, place })
        });
        Ok(Waiting::Filed(parts.collect::<Result<_>>()?))
    }

    /// Returns the slot with a block, or one for it: new, or of the block that has not run for longest.
    fn slot(&self, index: usize) -> Result<SlotState<E::Slot>> {
        let mut slots = lock(&self.slots);
        if let Some(place) = slots.iter().position(|(block, _)| *block == index) {
            let (block, slot) = slots.remove(place);
            slots.push((block, slot.clone()));
            return Ok(SlotState::Filled(slot));
        }
        let unused = slots.iter().position(|(_, slot)| Arc::strong_count(slot) == 1);
        if slots.len() >= SLOTS {
            // If both are in use, for example for the way back, the older one is freed when that is done.
            let (_, slot) = slots.remove(unused.unwrap_or(0));
            if let Some(slot) = Arc::into_inner(slot) {
                return Ok(SlotState::Free(slot));
            }
        }
        let fresh = self.engine.slot(self.slot_bytes.load(Ordering::Relaxed), &self.live)?;
        Ok(SlotState::Free(fresh))
    }

    /// Reads a block from files to main memory that copies read.
    fn read(&self, parts: &[FilePart], bytes: usize) -> Result<E::Host> {
        let mut host = match lock(&self.passing).take() {
            Some((room, host)) if room == bytes => host,
            _ => self.engine.host(bytes)?,
        };
        let pinned = self.engine.host_bytes(&mut host)?;
        parts.iter().try_for_each(|part| part.read(pinned))?;
        Ok(host)
    }
}

impl<E: CopyEngine> RingBlock<E> {
    fn matrices(&self, slot: &Arc<E::Slot>) -> Result<Vec<Weight>> {
        let matrices = self.matrices.iter();
        matrices
            .map(|matrix| self.ring.engine.unpack(&matrix.form, slot, &matrix.places))
            .collect()
    }
}

impl<E: CopyEngine> KeptBlock for RingBlock<E> {
    fn begin(self: Arc<Self>) -> Result<Box<dyn PendingBlock>> {
        if let Some(matrices) = &*lock(&self.here) {
            return Ok(Box::new(PendingCopy::<E>::Here(matrices.clone())));
        }
        let state = match self.stays.load(Ordering::Relaxed) {
            true => SlotState::Free(self.ring.engine.slot(self.bytes, &self.ring.live)?),
            false => self.ring.slot(self.index)?,
        };
        let mut slot = match state {
            SlotState::Filled(slot) => return Ok(Box::new(PendingCopy::<E>::Here(self.matrices(&slot)?))),
            SlotState::Free(slot) => slot,
        };
        if let Waiting::Pinned(host) = &self.waiting {
            self.ring.engine.copy(host, &mut slot)?;
            return Ok(Box::new(PendingCopy::Copying(self, slot)));
        }
        let block = self.clone();
        let read = move || match &block.waiting {
            Waiting::Filed(parts) => block.ring.read(parts, block.bytes).map_err(io::Error::other),
            Waiting::Pinned(_) => Err(io::Error::other("a block in memory is not read")),
        };
        let thread = thread::Builder::new().name("read ahead".into()).spawn(read)?;
        Ok(Box::new(PendingCopy::Reading(self, slot, thread)))
    }
}

/// Matrices on their way.
enum PendingCopy<E: CopyEngine> {
    Here(Vec<Weight>),
    Copying(Arc<RingBlock<E>>, E::Slot),
    /// From a file to main memory.
    Reading(Arc<RingBlock<E>>, E::Slot, JoinHandle<io::Result<E::Host>>),
}

impl<E: CopyEngine> PendingBlock for PendingCopy<E> {
    fn end(self: Box<Self>) -> Result<Vec<Weight>> {
        let (block, slot) = match *self {
            Self::Here(matrices) => return Ok(matrices),
            Self::Copying(block, slot) => (block, slot),
            Self::Reading(block, mut slot, thread) => {
                let read = thread
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("the thread that reads ended")));
                let host = read.map_err(|error| {
                    let message = format!("block {}: its weights could not be read again: {error}", block.index);
                    Error::Msg(message)
                })?;
                block.ring.engine.copy(&host, &mut slot)?;
                *lock(&block.ring.passing) = Some((block.bytes, host));
                (block, slot)
            }
        };
        block.ring.engine.wait(&slot)?;
        let slot = Arc::new(slot);
        let matrices = block.matrices(&slot)?;
        match block.stays.load(Ordering::Relaxed) {
            true => *lock(&block.here) = Some(matrices.clone()),
            false => lock(&block.ring.slots).push((block.index, slot)),
        }
        Ok(matrices)
    }
}
