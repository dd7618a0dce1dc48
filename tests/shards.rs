//! Frozen weights shared out over ranks, as one rank of them sees it. `tests/dist` has runs with several.

use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use vtrain::distributed::{AllGather, Pending, RankInfo};
use vtrain::nn::Load;
use vtrain::nn::Weights;
use vtrain::nn::lent::{LentBlocks, Matrix};
use vtrain::nn::residency::{Residency, ResidentShare};
use vtrain::nn::shards::Shards;
use vtrain::nn::storage::quantize::Quantization;
use vtrain::nn::stream::Streamed;
use vtrain::ops::bytes::ALIGNMENT;
use vtrain::ops::stored::Weight;

/// The first of so many ranks. Alone it has all there is; what it asked for is kept by its first number.
struct First {
    of: usize,
    begun: Mutex<Vec<f32>>,
}

struct Come(Tensor);

impl AllGather for First {
    fn place(&self) -> RankInfo {
        RankInfo {
            world_size: self.of,
            ..RankInfo::ALONE
        }
    }

    fn begin(&self, part: &Tensor) -> anyhow::Result<Box<dyn Pending>> {
        self.begun.lock().unwrap().push(part.to_vec1::<f32>()?[0]);
        Ok(Box::new(Come(part.clone())))
    }
}

impl Pending for Come {
    fn end(self: Box<Self>) -> anyhow::Result<Tensor> {
        Ok(self.0)
    }
}

fn first(of: usize) -> Arc<First> {
    Arc::new(First {
        of,
        begun: Mutex::default(),
    })
}

/// Four blocks of two matrices, with what they hold.
fn blocks(lent: &LentBlocks) -> Vec<Vec<(Matrix, Vec<f32>)>> {
    let matrix = |block: usize, rows: usize| {
        let numbers: Vec<f32> = (0..rows * 3).map(|i| (100 * block + 10 * rows + i) as f32).collect();
        let whole = Tensor::from_slice(&numbers, (rows, 3), &Device::Cpu).unwrap();
        (lent.take(whole, None).unwrap(), numbers)
    };
    let block = |block| {
        let matrices = vec![matrix(block, 2), matrix(block, 4)];
        lent.end_block().unwrap();
        matrices
    };
    (0..4).map(block).collect()
}

#[test]
fn a_block_is_whole_while_it_runs_in_whatever_order_blocks_are_asked_for() {
    let lent = LentBlocks::new(Box::new(Shards::new(first(1))));
    let blocks = blocks(&lent);
    for index in [0, 1, 2, 3, 3, 2, 1, 0, 0, 3, 1, 1, 0, 2] {
        let brought = lent.fetch(index).unwrap();
        for (place, block) in blocks.iter().enumerate() {
            for (matrix, numbers) in block {
                match matrix.whole() {
                    Ok(whole) => assert_eq!(
                        &whole
                            .dense(DType::F32)
                            .unwrap()
                            .flatten_all()
                            .unwrap()
                            .to_vec1::<f32>()
                            .unwrap(),
                        numbers,
                        "{index}"
                    ),
                    Err(_) => assert_ne!(place, index),
                }
                assert!(place == index || matrix.whole().is_err(), "{place} while {index} runs");
            }
        }
        drop(brought);
        assert!(blocks[index].iter().all(|(matrix, _)| matrix.whole().is_err()));
    }
    assert!(lent.fetch(4).is_err());
}

/// Blocks of a matrix in few bits and two dense ones; of two ranks, the first has half of the dense ones.
#[test]
fn streamed_parts_and_matrices_in_few_bits_come_back_in_the_order_of_their_layers() {
    let streamed = || Box::new(Streamed::new(&Device::Cpu, ResidentShare::Share(0.0)));
    let int8 = Quantization::from_name("int8").unwrap();
    let dense = |block: usize, rows: usize| {
        let numbers: Vec<f32> = (0..rows * 3).map(|i| (100 * block + 10 * rows + i) as f32).collect();
        Tensor::from_slice(&numbers, (rows, 3), &Device::Cpu).unwrap()
    };
    let lent = LentBlocks::new(Box::new(Shards::streamed(first(1), streamed(), &Device::Cpu)));
    let block = |index: usize| {
        let stored = Weight::Stored(int8.store(&dense(index, 5), &Device::Cpu).unwrap());
        let wholes = [stored, dense(index, 2).into(), dense(index, 4).into()];
        let expected = wholes
            .clone()
            .map(|whole| whole.dense(DType::F32).unwrap().to_vec2::<f32>().unwrap());
        let matrices = wholes.map(|whole| lent.take(whole, None).unwrap());
        lent.end_block().unwrap();
        (matrices, expected)
    };
    let blocks: Vec<_> = (0..4).map(block).collect();
    for index in [0, 1, 2, 3, 3, 2, 1, 0, 2] {
        let guard = lent.fetch(index).unwrap();
        let (matrices, expected) = &blocks[index];
        for (matrix, expected) in matrices.iter().zip(expected) {
            let whole = matrix.whole().unwrap().dense(DType::F32).unwrap();
            assert_eq!(&whole.to_vec2::<f32>().unwrap(), expected, "{index}");
        }
        drop(guard);
    }
    // Two blocks of three parts at a time: the dense numbers, codes, scales.
    assert_eq!(lent.live().unwrap().most(), 2 * 3 * ALIGNMENT);
    // Half of it, on the first of two ranks.
    let half = LentBlocks::new(Box::new(Shards::streamed(first(2), streamed(), &Device::Cpu)));
    half.take(dense(1, 400), None).unwrap();
    half.end_block().unwrap();
    assert!(half.fetch(0).is_err(), "the other half never comes");
    assert_eq!(
        half.live().unwrap().most(),
        (400 * 3 * 4 / 2usize).next_multiple_of(ALIGNMENT)
    );
}

#[test]
fn each_block_is_asked_for_once_a_way_and_the_next_one_early() {
    let ranks = first(1);
    let lent = LentBlocks::new(Box::new(Shards::new(ranks.clone())));
    let blocks = blocks(&lent);
    let names: Vec<f32> = blocks.iter().map(|block| block[0].1[0]).collect();
    let asked = |index: usize| {
        drop(lent.fetch(index).unwrap());
        let begun = std::mem::take(&mut *ranks.begun.lock().unwrap());
        begun
            .iter()
            .map(|begun| names.iter().position(|name| name == begun).unwrap())
            .collect::<Vec<_>>()
    };
    let forwards: Vec<_> = (0..4).map(asked).collect();
    assert_eq!(forwards, [vec![0, 1], vec![2], vec![3], vec![]]);
    // The last one is the first on the way back, from where it is not known that the way leads back.
    let backwards: Vec<_> = (0..4).rev().map(asked).collect();
    assert_eq!(backwards, [vec![3], vec![2, 1], vec![0], vec![1]]);
}

#[test]
fn a_part_of_the_weights_needs_no_more_room_than_all_of_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox/cogvideox-5b/transformer");
    let weights = Weights::open(folder.as_path(), DType::F32, &Device::Cpu).unwrap();
    weights.ensure_memory(&[]).unwrap();
    // As many ranks as no machine has bytes for.
    let load = Load::new(DType::F32, &Device::Cpu).with_residency(Residency::Sharded(first(1 << 40)));
    let shared = Weights::read(&folder.as_path().into(), &load).unwrap();
    shared.ensure_memory(&[]).unwrap();
}

/// A block's matrices in few bits stay whole on every rank, which is counted.
#[test]
fn stored_matrices_of_blocks_are_not_shared_out() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/storage/transformers/int8");
    let read = |load: &Load| {
        let weights = Weights::read(&folder.as_path().into(), load).unwrap();
        let block = |inside: Weights| inside.pp("attn1").pp("to_q").matrix((28, 28), "weight");
        let matrix = weights.pp("blocks").block(0, block).unwrap();
        assert!(matches!(matrix, Matrix::Own(_)));
        weights.lent().map_or(0, |lent| lent.own_bytes())
    };
    let alone = Load::new(DType::F32, &Device::Cpu);
    assert_eq!(read(&alone), 0);
    assert_eq!(
        read(&alone.with_residency(Residency::Sharded(first(2)))),
        28 * 28 + 28 * 4
    );
}
