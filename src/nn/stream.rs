//! Streamed frozen matrices of blocks: they lie in files, and each block is read while the one before it runs.
//!
//! The parts of a block are read one behind the other into one of two slots, forwards and backwards, and are never written
//! back: the slot of a block that is done takes the next one. Where the checkpoint has the bytes as they are computed with,
//! they are read from its own files; others (matrices stored in few bits while loading, converted, or merged) are written
//! once to a file without a name in `TMPDIR`, or /var/tmp. Files are read into the slots rather than mapped: mapped
//! pages that were touched count as the process's own memory.
//!
//! Some blocks may stay in memory. The S streamed ones of N are then spread evenly, block floor((2i + 1) N / 2S) for each i
//! below S, so that there is a block's time to read each. musubi-tuner's `LoRAStreamOffloader` has the same order.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use candle_core::{Device, Error, Result};
use indicatif::BinaryBytes;

use super::lent::{BlockKeeper, KeptBlock, PendingBlock, lock};
use super::resident_share::{ResidentShare, free_memory};
use crate::ops::bytes::{ALIGNMENT, Bytes, LiveBytes, Origin, Slot};
use crate::ops::stored::{PlainMatrix, StoredMatrix, Weight};

/// Slots that blocks are read into: one for the block that runs, one for the next.
pub(super) const SLOTS: usize = 2;

/// Keeper of blocks in files.
pub struct Streamed(Arc<Stream>);

struct Stream {
    device: Device,
    resident: ResidentShare,
    files: Mutex<Files>,
    /// The block that is being read.
    reading: Mutex<Reading>,
    blocks: Mutex<Vec<Arc<StreamedBlock>>>,
    /// Bytes of a slot.
    slot_bytes: AtomicUsize,
    /// Slots with the blocks in them, the last used one at the end.
    slots: Mutex<Vec<(usize, Arc<Slot>)>>,
    live: Arc<LiveBytes>,
}

#[derive(Default)]
struct Reading {
    matrices: Vec<FiledMatrix>,
    bytes: usize,
}

/// A matrix whose bytes are in files.
struct FiledMatrix {
    /// The matrix without its bytes.
    form: Arc<dyn StoredMatrix>,
    parts: Vec<FilePart>,
}

pub(super) struct FilePart {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    /// Place in a slot.
    pub(super) place: Range<usize>,
}

struct StreamedBlock {
    stream: Arc<Stream>,
    index: usize,
    matrices: Vec<FiledMatrix>,
    bytes: usize,
    stays: AtomicBool,
    /// The matrices of a block that stays.
    here: Mutex<Option<Vec<Weight>>>,
}

/// Open files, and the one for matrices that no file has as they are.
#[derive(Default)]
pub(super) struct Files {
    open: HashMap<Arc<Path>, Arc<File>>,
    own: Option<OwnFile>,
}

struct OwnFile {
    file: Arc<File>,
    end: u64,
}

impl Streamed {
    /// Blocks that run on `device`.
    pub fn new(device: &Device, resident: ResidentShare) -> Self {
        Self(Arc::new(Stream {
            device: device.clone(),
            resident,
            files: Mutex::default(),
            reading: Mutex::default(),
            blocks: Mutex::default(),
            slot_bytes: AtomicUsize::new(0),
            slots: Mutex::default(),
            live: Arc::default(),
        }))
    }

    /// Device that blocks run on.
    pub fn device(&self) -> &Device {
        &self.0.device
    }
}

impl BlockKeeper for Streamed {
    fn reads_to_host(&self) -> bool {
        true
    }

    fn take(&self, matrix: Weight, origin: Option<Origin>) -> Result<Option<Weight>> {
        let stored: Arc<dyn StoredMatrix> = match &matrix {
            Weight::Dense(dense) => Arc::new(PlainMatrix::new(dense, origin)?),
            Weight::Stored(stored) => stored.clone(),
        };
        let Some(movable) = stored.movable() else {
            return Ok(Some(matrix));
        };
        let (mut reading, mut files) = (lock(&self.0.reading), lock(&self.0.files));
        let (mut parts, mut empty) = (Vec::new(), Vec::new());
        for part in movable.parts() {
            let (file, offset) = files.place(&part)?;
            let start = reading.bytes;
            reading.bytes = (start + part.len()).next_multiple_of(ALIGNMENT);
            let place = start..start + part.len();
            parts.push(FilePart { file, offset, place });
            empty.push(Bytes::from(Vec::new()));
        }
        match movable.over(empty, &Device::Cpu)? {
            Weight::Stored(form) => reading.matrices.push(FiledMatrix { form, parts }),
            Weight::Dense(_) => return Ok(Some(matrix)), // only on other devices
        }
        Ok(None)
    }

    fn end_block(&self) -> Result<Arc<dyn KeptBlock>> {
        let Reading { matrices, bytes } = std::mem::take(&mut *lock(&self.0.reading));
        let mut blocks = lock(&self.0.blocks);
        let block = Arc::new(StreamedBlock {
            stream: self.0.clone(),
            index: blocks.len(),
            matrices,
            bytes,
            stays: AtomicBool::new(false),
            here: Mutex::default(),
        });
        blocks.push(block.clone());
        Ok(block)
    }

    fn start(&self) -> Result<String> {
        let blocks = lock(&self.0.blocks);
        let sizes: Vec<usize> = blocks.iter().map(|block| block.bytes).collect();
        let staying = self.0.resident.of(&sizes, SLOTS, free_memory(&self.0.device));
        let streamed = spread(sizes.len() - staying, sizes.len());
        for block in blocks.iter() {
            let stays = !streamed.contains(&block.index);
            block.stays.store(stays, Ordering::Relaxed);
        }
        let slot_bytes = streamed.iter().map(|index| sizes[*index]).max().unwrap_or(0);
        self.0.slot_bytes.store(slot_bytes, Ordering::Relaxed);
        let all: usize = sizes.iter().sum();
        let moving: usize = streamed.iter().map(|index| sizes[*index]).sum();
        Ok(format!(
            "the matrices of {} blocks are in files, {}: {staying} blocks of {} in all stay in memory, and two of {} at most pass \
             through it",
            sizes.len(),
            BinaryBytes(all as u64),
            BinaryBytes((all - moving) as u64),
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

impl FilePart {
    /// Reads it to its place among these bytes.
    pub(super) fn read(&self, slot: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(&mut slot[self.place.clone()], self.offset)
    }
}

/// Returns `streamed` of `blocks` blocks, spread evenly.
pub fn spread(streamed: usize, blocks: usize) -> Vec<usize> {
    (0..streamed).map(|i| (2 * i + 1) * blocks / (2 * streamed)).collect()
}

impl Files {
    /// Returns the file in which these bytes are, and where; writes them to the own file if there is none.
    pub(super) fn place(&mut self, bytes: &Bytes) -> Result<(Arc<File>, u64)> {
        let Some(Origin { path, offset }) = bytes.origin() else {
            return self.write(bytes);
        };
        if let Some(file) = self.open.get(path) {
            return Ok((file.clone(), *offset));
        }
        let file = File::open(path).map_err(|error| Error::Msg(format!("{}: {error}", path.display())))?;
        let file = Arc::new(file);
        self.open.insert(path.clone(), file.clone());
        Ok((file, *offset))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(Arc<File>, u64)> {
        let folder = own_folder();
        let failed = |error: io::Error| {
            Error::Msg(format!(
                "{}: a file for streamed weights could not be written: {error}; set TMPDIR to a folder with room for the \
                 transformer",
                folder.display()
            ))
        };
        let own = match &mut self.own {
            Some(own) => own,
            none => none.insert(OwnFile {
                file: Arc::new(tempfile::tempfile_in(&folder).map_err(failed)?),
                end: 0,
            }),
        };
        let offset = own.end;
        own.file.write_all_at(bytes, offset).map_err(failed)?;
        own.end += bytes.len() as u64;
        Ok((own.file.clone(), offset))
    }
}

/// Folder of own files: `TMPDIR`, else /var/tmp, which unlike /tmp is on a disk everywhere.
pub(super) fn own_folder() -> PathBuf {
    let usual = Path::new("/var/tmp");
    match std::env::var_os("TMPDIR").is_none() && usual.is_dir() {
        true => usual.into(),
        false => std::env::temp_dir(),
    }
}

/// Where a block that is not in memory is to be read.
enum SlotState {
    /// It is there already.
    Filled(Arc<Slot>),
    Free(Slot),
}

impl Stream {
    /// Returns the slot with a block, or one for it: new, or of the block that has not run for longest.
    fn slot(&self, index: usize) -> SlotState {
        let mut slots = lock(&self.slots);
        if let Some(place) = slots.iter().position(|(block, _)| *block == index) {
            let (block, slot) = slots.remove(place);
            slots.push((block, slot.clone()));
            return SlotState::Filled(slot);
        }
        let fresh = || Slot::new(self.slot_bytes.load(Ordering::Relaxed), &self.live);
        if slots.len() < SLOTS {
            return SlotState::Free(fresh());
        }
        let unused = slots.iter().position(|(_, slot)| Arc::strong_count(slot) == 1);
        // If both are in use, for example for the way back, the older one is freed when that is done.
        let (_, slot) = slots.remove(unused.unwrap_or(0));
        SlotState::Free(Arc::into_inner(slot).unwrap_or_else(fresh))
    }
}

impl StreamedBlock {
    /// Reads the bytes of all matrices.
    fn read(&self, slot: &mut Slot) -> io::Result<()> {
        let bytes = slot.bytes_mut();
        let mut parts = self.matrices.iter().flat_map(|matrix| &matrix.parts);
        parts.try_for_each(|part| part.read(bytes))
    }

    /// Returns the matrices, of bytes in a slot.
    fn matrices(&self, slot: &Arc<Slot>) -> Result<Vec<Weight>> {
        let matrix = |matrix: &FiledMatrix| {
            let parts = matrix.parts.iter();
            let parts = parts.map(|part| Bytes::of_slot(slot, part.place.clone())).collect();
            match matrix.form.movable() {
                Some(form) => form.over(parts, &self.stream.device),
                None => Err(Error::Msg("a streamed matrix has no parts".into())),
            }
        };
        self.matrices.iter().map(matrix).collect()
    }
}

impl KeptBlock for StreamedBlock {
    fn begin(self: Arc<Self>) -> Result<Box<dyn PendingBlock>> {
        if let Some(matrices) = &*lock(&self.here) {
            return Ok(Box::new(PendingRead::Here(matrices.clone())));
        }
        let state = match self.stays.load(Ordering::Relaxed) {
            true => SlotState::Free(Slot::new(self.bytes, &self.stream.live)),
            false => self.stream.slot(self.index),
        };
        let mut slot = match state {
            SlotState::Filled(slot) => return Ok(Box::new(PendingRead::Here(self.matrices(&slot)?))),
            SlotState::Free(slot) => slot,
        };
        let block = self.clone();
        let read = move || block.read(&mut slot).map(|()| slot);
        let thread = thread::Builder::new().name("read ahead".into()).spawn(read)?;
        Ok(Box::new(PendingRead::Reading(self, thread)))
    }
}

/// Matrices on their way.
enum PendingRead {
    Here(Vec<Weight>),
    Reading(Arc<StreamedBlock>, JoinHandle<io::Result<Slot>>),
}

impl PendingBlock for PendingRead {
    fn end(self: Box<Self>) -> Result<Vec<Weight>> {
        let (block, thread) = match *self {
            Self::Here(matrices) => return Ok(matrices),
            Self::Reading(block, thread) => (block, thread),
        };
        let read = thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that reads ended")));
        let slot = read.map_err(|error| {
            let message = format!("block {}: its weights could not be read again: {error}", block.index);
            Error::Msg(message)
        })?;
        let slot = Arc::new(slot);
        let matrices = block.matrices(&slot)?;
        match block.stays.load(Ordering::Relaxed) {
            true => *lock(&block.here) = Some(matrices.clone()),
            false => lock(&block.stream.slots).push((block.index, slot)),
        }
        Ok(matrices)
    }
}
