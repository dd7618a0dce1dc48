//! Sizes at which code behaves differently, or stops: tiles, strips, chunks for threads, pieces of a file, limits of
//! what is read, how much of a list is shown. Each is a constant, and `table.rs` names the test that has less and more
//! than it.

mod configs; // the largest sizes that settings may name
mod files; // files that are refused by their size
mod lists; // how much of many things is shown
mod pictures; // how large, how long and how deep clips may be
mod scripts; // how deep and how long other trainers' scripts may be
mod table; // each constant, and its test or what else it is

use candle_core::{DType, Device, Tensor, Var};
use vtrain::distributed;
use vtrain::nn::Load;
use vtrain::nn::Weights;
use vtrain::nn::dropout::{Dropout, Seed};
use vtrain::ops::activation::silu;
use vtrain::ops::kernel::Grid;
use vtrain::ops::kernel::rows::Rows;
use vtrain::ops::linear::Frozen;
use vtrain::ops::modulate::launch;
use vtrain::optim::adamw::{self, AdamW};
use vtrain::optim::clip;
use vtrain::optim::ema::Ema;
use vtrain::rng::Rng;
use vtrain::text::t5::{self, T5Encoder};

fn randn(seed: u64, shape: &[usize]) -> Tensor {
    let numbers = Rng::new(seed).randn(shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}

#[test]
fn pieces_cover_a_length_in_order() {
    let pieces = |length, most| distributed::pieces(length, most).collect::<Vec<_>>();
    assert!(pieces(0, 4).is_empty());
    assert_eq!(pieces(3, 4), [(0, 3)]);
    assert_eq!(pieces(4, 4), [(0, 4)]);
    assert_eq!(pieces(5, 4), [(0, 4), (4, 1)]);
    assert_eq!(pieces(9, 4), [(0, 4), (4, 4), (8, 1)]);
}

/// 2^20 numbers of a matrix in bf16 are widened at a time: 1024 rows of 1024.
#[test]
fn a_matrix_in_bf16_is_the_same_in_one_strip_and_in_several() {
    for rows in [1023, 1024, 1025, 2049] {
        let weight = randn(1, &[rows, 1024]).to_dtype(DType::BF16).unwrap();
        let (x, factors) = (randn(2, &[3, 1024]), randn(3, &[3, rows]));
        let there_and_back = |weight: Tensor| {
            let x = Var::from_tensor(&x).unwrap();
            let y = Frozen::new(weight, None).forward(&x).unwrap();
            let grads = (&y * &factors).unwrap().sum_all().unwrap().backward().unwrap();
            [values(&y), values(grads.get(&x).unwrap())]
        };
        let (narrow, wide) = (
            there_and_back(weight.clone()),
            there_and_back(weight.to_dtype(DType::F32).unwrap()),
        );
        for (narrow, wide) in narrow.iter().flatten().zip(wide.iter().flatten()) {
            assert!((narrow - wide).abs() <= 1e-3, "{rows} rows: {narrow} for {wide}");
        }
    }
}

/// 2^15 numbers are converted at a time.
#[test]
fn numbers_in_bf16_are_read_and_written_alike_in_every_chunk() {
    for count in [(1 << 15) - 1, 1 << 15, (1 << 15) + 1, 3 << 15] {
        let x = randn(4, &[count]).to_dtype(DType::BF16).unwrap();
        let expected = silu(&x.to_dtype(DType::F32).unwrap())
            .unwrap()
            .to_dtype(DType::BF16)
            .unwrap();
        assert_eq!(values(&silu(&x).unwrap()), values(&expected), "{count}");
    }
}

/// 2^14 numbers are drawn at a time: the i-th is what SplitMix64 has at the place i, whichever thread draws it.
#[test]
fn dropout_draws_each_number_by_its_place() {
    fn mix(at: u64) -> u64 {
        let z = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    let dropout = Dropout {
        probability: 0.25,
        seed: Seed::default(),
        layer: 3,
    };
    dropout.seed.set(Some(7));
    let start = mix(mix(7) ^ 3);
    for count in [(1 << 14) - 1, 1 << 14, (1 << 14) + 1, (2 << 14) + 5] {
        let x = Tensor::ones(count, DType::F32, &Device::Cpu).unwrap();
        let found = values(&dropout.forward(&x).unwrap());
        for (i, found) in found.into_iter().enumerate() {
            let draw = mix(start.wrapping_add(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i as u64)));
            let kept = draw >> 32 >= 1 << 30;
            assert_eq!(found > 0.0, kept, "{i} of {count}");
        }
    }
}

/// 2^16 numbers are made at a time.
#[test]
fn numbers_that_are_made_up_do_not_come_again_after_a_chunk() {
    let weights = Weights::random(&Load::new(DType::F32, &Device::Cpu));
    let (long, short) = ((3 << 16) + 5, 1 << 15);
    let made = |count: usize| values(&weights.get(count, "made_up.bias").unwrap());
    let all = made(long);
    assert_eq!(made(short), all[..short], "a number follows from its place");
    for chunk in 1..3 {
        let next = &all[chunk << 16..][..100];
        assert!(next != &all[..100], "chunk {chunk} is the first one again");
    }
}

/// 2^14 numbers are moved at a time; each moves as it does in a tensor of its own.
#[test]
fn the_optimiser_and_the_average_move_each_number_by_itself() {
    for count in [(1 << 14) - 1, 1 << 14, (1 << 14) + 1, (2 << 14) + 7] {
        let (first, gradient) = (randn(5, &[count]), randn(6, &[count]));
        let parts = [0, 1000, count - 100].map(|from| (from, 100));
        let moved = |from: usize, length: usize| {
            let own = |tensor: &Tensor| tensor.narrow(0, from, length).unwrap().copy().unwrap();
            let var = Var::from_tensor(&own(&first)).unwrap();
            let mut ema = Ema::new(vec![var.clone()], 0.9).unwrap();
            let mut optimizer = AdamW::new(vec![var.clone()], &adamw::Config::default()).unwrap();
            for _ in 0..3 {
                optimizer.step(&[own(&gradient)], 0.5, 0.1).unwrap();
                ema.update().unwrap();
            }
            (
                values(&var),
                values(&ema.averages()[0]),
                clip::global_norm(&[own(&gradient)]).unwrap(),
            )
        };
        let (var, average, norm) = moved(0, count);
        for (from, length) in parts {
            let (own_var, own_average, _) = moved(from, length);
            assert_eq!(var[from..from + length], own_var, "{count}: from {from}");
            assert_eq!(average[from..from + length], own_average, "{count}: from {from}");
        }
        let squares: f64 = values(&gradient).into_iter().map(|x| f64::from(x).powi(2)).sum();
        assert!((norm / squares.sqrt() - 1.0).abs() < 1e-9, "{count}");
    }
}

/// Threads take 16 rows at least, 2^12 numbers of a gate or 2^14 of a sum: a caption is the same alone as among others.
#[test]
fn a_caption_is_the_same_alone_and_in_a_batch_that_threads_share_out() {
    for (tokens, d_model, d_ff) in [(4, 8, 16), (33, 8, 128), (129, 128, 16)] {
        let config = t5::Config {
            vocab_size: 50,
            d_model,
            d_kv: 4,
            d_ff,
            num_layers: 1,
            num_heads: 2,
            ..t5::Config::default()
        };
        let encoder = T5Encoder::new(&config, Weights::random(&Load::new(DType::F32, &Device::Cpu))).unwrap();
        let ids = |from: usize, captions: usize| {
            let ids = (from * tokens..(from + captions) * tokens)
                .map(|i| (i * 7 % 50) as u32)
                .collect::<Vec<_>>();
            Tensor::from_vec(ids, (captions, tokens), &Device::Cpu).unwrap()
        };
        let together = values(&encoder.forward(&ids(0, 5), None).unwrap());
        for caption in 0..5 {
            let alone = values(&encoder.forward(&ids(caption, 1), None).unwrap());
            for (a, b) in alone.iter().zip(&together[caption * alone.len()..]) {
                assert!(
                    (a - b).abs() <= 1e-4 * a.abs().max(1.0),
                    "{tokens} {caption}: {a} for {b}"
                );
            }
        }
    }
}

/// A launch has 2^16 blocks at most, a row 32 to 512 threads, a sum 64 rows or a 64th part of them.
#[test]
fn launches_grow_with_what_they_go_through_up_to_what_a_card_takes() {
    let blocks = |count: usize| Grid::over(count).blocks[0];
    assert_eq!([0, 256, 257].map(blocks), [1, 1, 2]);
    assert_eq!([1 << 24, (1 << 24) + 1].map(blocks), [1 << 16, 1 << 16]);
    assert_eq!(blocks((1 << 24) - 256), (1 << 16) - 1);
    let threads = |width: usize| Grid::rows(1, width, DType::F32, false).threads;
    assert_eq!(
        [1, 32, 33, 480, 481, 512, 513].map(threads),
        [32, 32, 64, 480, 512, 512, 512]
    );
    let slices = |rows: usize| {
        Rows {
            batch: 1,
            parts: &[rows],
            width: 1,
            dtype: DType::F32,
        }
        .slices()
    };
    assert_eq!([0, 64, 65, 4096, 4097].map(slices), [1, 1, 2, 64, 64]);
    let read = launch::Read {
        x: 0,
        scale: 0,
        shift: 0,
    };
    let clip = |pixels: usize| {
        let sizes = launch::Sizes {
            x: [1, 1, 1, pixels, 16],
            table: [1, 1, 1],
        };
        launch::forward(sizes, read, None, 0, DType::F32).unwrap().grid.blocks[0]
    };
    assert_eq!([8, 9, 1 << 19, (1 << 19) + 1].map(clip), [1, 2, 1 << 16, 1 << 16]);
}
