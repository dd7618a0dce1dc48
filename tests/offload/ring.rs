//! Blocks that are copied to a device of its own memory: here one whose copies are done as early, or as late, as they may.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Tensor};
use vtrain::nn::lent::{BlockKeeper, LentBlocks, Matrix};
use vtrain::nn::residency::ResidentShare;
use vtrain::nn::ring::{CopyEngine, Ring, main_memory_room};
use vtrain::nn::storage::quantize::Quantization;
use vtrain::nn::weights::WeightBytes;
use vtrain::ops::bytes::{Bytes, LiveBytes};
use vtrain::ops::stored::{StoredMatrix, Weight};
use vtrain::process::memory;

/// Byte of memory that no copy has filled.
const UNFILLED: u8 = 0x5a;

const BLOCKS: usize = 5;

/// A device whose copies are done when they are queued, or not before they are waited for.
struct Emulated {
    late: bool,
    /// Bytes that pinned main memory has room for.
    room: AtomicU64,
}

struct EmulatedSlot {
    bytes: Mutex<Vec<u8>>,
    /// Bytes that are being copied.
    queued: Mutex<Option<Vec<u8>>>,
    counted: usize,
    live: Arc<LiveBytes>,
}

impl Drop for EmulatedSlot {
    fn drop(&mut self) {
        self.live.remove(self.counted);
    }
}

/// A matrix that reads its slot whenever it is used, like a kernel.
#[derive(Debug)]
struct InSlot {
    form: Arc<dyn StoredMatrix>,
    slot: Arc<EmulatedSlot>,
    places: Vec<Range<usize>>,
}

impl std::fmt::Debug for EmulatedSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a slot of {}", self.counted)
    }
}

impl StoredMatrix for InSlot {
    fn shape(&self) -> (usize, usize) {
        self.form.shape()
    }

    fn bytes(&self) -> usize {
        self.places.iter().map(Range::len).sum()
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn rows(&self, range: Range<usize>, dtype: DType) -> Result<Tensor> {
        let bytes = self.slot.bytes.lock().unwrap();
        let parts = self
            .places
            .iter()
            .map(|place| Bytes::from(bytes[place.clone()].to_vec()));
        match self.form.movable().unwrap().over(parts.collect(), &Device::Cpu)? {
            Weight::Stored(matrix) => matrix.rows(range, dtype),
            Weight::Dense(_) => unreachable!("it is on the CPU"),
        }
    }
}

impl CopyEngine for Emulated {
    type Form = Arc<dyn StoredMatrix>;
    type Host = Vec<u8>;
    type Slot = EmulatedSlot;

    fn pack(&self, matrix: &dyn StoredMatrix) -> Option<(Self::Form, Vec<Bytes>)> {
        let movable = matrix.movable()?;
        let parts = movable.parts();
        let empty = parts.iter().map(|_| Bytes::from(Vec::new())).collect();
        match movable.over(empty, &Device::Cpu).unwrap() {
            Weight::Stored(form) => Some((form, parts)),
            Weight::Dense(_) => None,
        }
    }

    fn unpack(&self, form: &Self::Form, slot: &Arc<EmulatedSlot>, places: &[Range<usize>]) -> Result<Weight> {
        Ok(Weight::Stored(Arc::new(InSlot {
            form: form.clone(),
            slot: slot.clone(),
            places: places.to_vec(),
        })))
    }

    fn host_room(&self) -> Option<u64> {
        Some(self.room.load(Ordering::Relaxed))
    }

    fn room(&self) -> Option<u64> {
        None
    }

    fn host(&self, bytes: usize) -> Result<Vec<u8>> {
        let left = self.room.load(Ordering::Relaxed).saturating_sub(bytes as u64);
        self.room.store(left, Ordering::Relaxed);
        Ok(vec![UNFILLED; bytes])
    }

    fn host_bytes<'a>(&self, host: &'a mut Vec<u8>) -> Result<&'a mut [u8]> {
        Ok(host)
    }

    fn slot(&self, bytes: usize, live: &Arc<LiveBytes>) -> Result<EmulatedSlot> {
        live.add(bytes);
        Ok(EmulatedSlot {
            bytes: Mutex::new(vec![UNFILLED; bytes]),
            queued: Mutex::default(),
            counted: bytes,
            live: live.clone(),
        })
    }

    fn copy(&self, host: &Vec<u8>, slot: &mut EmulatedSlot) -> Result<()> {
        slot.bytes.get_mut().unwrap().fill(UNFILLED);
        *slot.queued.get_mut().unwrap() = Some(host.clone());
        if !self.late {
            self.wait(slot)?;
        }
        Ok(())
    }

    fn wait(&self, slot: &EmulatedSlot) -> Result<()> {
        if let Some(copied) = slot.queued.lock().unwrap().take() {
            let mut bytes = slot.bytes.lock().unwrap();
            let count = copied.len().min(bytes.len());
            bytes[..count].copy_from_slice(&copied[..count]);
        }
        Ok(())
    }
}

/// Numbers of the matrices of a block, the first of which is wider in every other block.
fn dense(block: usize) -> [Tensor; 3] {
    let matrix = |rows: usize, columns: usize, first: usize| {
        let numbers: Vec<f32> = (0..rows * columns)
            .map(|i| ((first + i * 37 + block * 1001) % 257) as f32 / 64.0 - 2.0)
            .collect();
        Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap()
    };
    [
        matrix(3 + 4 * (block % 2), 64, 1),
        matrix(5, 64, 2).to_dtype(DType::BF16).unwrap(),
        matrix(7, 64, 3),
    ]
}

/// Blocks of a matrix in f32, one in bf16 and one in nf4; the bits of all.
fn blocks(late: bool, room: u64, share: f64) -> (LentBlocks, Vec<Vec<Matrix>>, Vec<Vec<Tensor>>) {
    let engine = Emulated {
        late,
        room: AtomicU64::new(room),
    };
    let keeper: Box<dyn BlockKeeper> = Box::new(Ring::new(engine, ResidentShare::Share(share)));
    let lent = LentBlocks::new(keeper);
    let nf4 = Quantization::from_name("nf4").unwrap();
    let (mut all, mut expected) = (Vec::new(), Vec::new());
    for block in 0..BLOCKS {
        let [first, second, third] = dense(block);
        let third = Weight::Stored(nf4.store(&third, &Device::Cpu).unwrap());
        let weights = [Weight::Dense(first), Weight::Dense(second), third];
        expected.push(weights.iter().map(|weight| weight.dense(DType::F32).unwrap()).collect());
        all.push(weights.map(|weight| lent.take(weight, None).unwrap()).into());
        lent.end_block().unwrap();
    }
    (lent, all, expected)
}

fn assert_block(what: &str, matrices: &[Matrix], expected: &[Tensor]) {
    for (matrix, expected) in matrices.iter().zip(expected) {
        let found = matrix.whole().unwrap().dense(DType::F32).unwrap();
        assert_eq!(
            found.to_vec2::<f32>().unwrap(),
            expected.to_vec2::<f32>().unwrap(),
            "{what}"
        );
    }
}

#[test]
fn a_block_has_its_own_numbers_whenever_copies_are_done() {
    let largest = {
        let (lent, ..) = blocks(false, u64::MAX, 0.0);
        drop(lent.fetch(1).unwrap());
        lent.live().unwrap().most() / 2
    };
    for late in [false, true] {
        // All in main memory; all in files; the first two in main memory.
        for room in [u64::MAX, 0, 2 * largest as u64] {
            for share in [0.0, 0.4, 1.0] {
                let what = format!("late {late}, room {room}, share {share}");
                let (lent, matrices, expected) = blocks(late, room, share);
                let there_and_back = (0..BLOCKS).chain((0..BLOCKS).rev());
                for block in there_and_back.clone().chain(there_and_back) {
                    let guard = lent.fetch(block).unwrap();
                    assert_block(&format!("{what}, block {block}"), &matrices[block], &expected[block]);
                    drop(guard);
                    assert!(
                        matrices[block][0].whole().is_err(),
                        "{what}: a matrix outlasts its block"
                    );
                }
                let live = lent.live().unwrap();
                let staying = (share * BLOCKS as f64).round() as usize;
                let passing = if staying == BLOCKS { 0 } else { 2 };
                assert!(
                    live.most() <= (staying + passing) * largest,
                    "{what}: {} at once",
                    live.most()
                );
                assert!(live.most() > 0);
                lent.release().unwrap();
                assert_eq!(live.now(), 0, "{what}");
                let _guard = lent.fetch(3).unwrap();
                assert_block(&format!("{what}, again"), &matrices[3], &expected[3]);
            }
        }
    }
}

#[test]
fn matrices_that_are_kept_for_the_way_back_are_not_overwritten() {
    for late in [false, true] {
        let (lent, matrices, expected) = blocks(late, u64::MAX, 0.0);
        let mut kept = Vec::new();
        for (block, matrices) in matrices.iter().enumerate() {
            let _guard = lent.fetch(block).unwrap();
            kept.push(
                matrices
                    .iter()
                    .map(|matrix| matrix.whole().unwrap())
                    .collect::<Vec<_>>(),
            );
        }
        for (kept, expected) in kept.iter().zip(&expected) {
            for (kept, expected) in kept.iter().zip(expected) {
                let found = kept.dense(DType::F32).unwrap().to_vec2::<f32>().unwrap();
                assert_eq!(found, expected.to_vec2::<f32>().unwrap());
            }
        }
    }
}

#[test]
fn only_what_main_memory_has_no_room_for_needs_room_on_the_disk() {
    let blocks = WeightBytes {
        whole: 1 << 40,
        lent: 100,
        largest: 8,
    };
    for (ranks, room, filed) in [
        (1, 100, 0),
        (1, 99, 9),
        (1, 40, 68),
        (1, 3, 100),
        (1, 0, 100),
        (2, 50, 0),
        (2, 40, 14),
    ] {
        assert_eq!(blocks.filed(ranks, room), filed, "{ranks} ranks, room {room}");
    }
}

#[test]
fn four_gib_of_main_memory_are_left_to_all_else() {
    const SPARED: u64 = 4 << 30;
    const OTHERS_MEANWHILE: u64 = 1 << 30;
    let free = memory::free().unwrap().bytes;
    let spared = free.saturating_sub(main_memory_room().unwrap());
    assert!(
        spared.abs_diff(free.min(SPARED)) < OTHERS_MEANWHILE,
        "{spared} of {free}"
    );
}
