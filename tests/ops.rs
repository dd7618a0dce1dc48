//! The operations against torch, against finite differences in f64, and against themselves with other numbers of threads.
//! scripts/fixtures/make_ops.py writes torch's numbers; inputs come from `randn`.

mod activation; // GELU and SiLU
mod add; // residuals without a gate
mod attention;
mod attention_bf16; // by blocks
mod bf16; // products by instructions made for them
mod chain; // gradients that go on from others
mod dropout; // which numbers are kept
mod elementwise; // what norms, activations, turns and residuals are held to
mod join; // joint tensors and their parts
mod linear;
mod linear_bf16; // the same in bf16, against PyTorch in bf16
mod modulate; // what precedes an autoencoder's convolution
mod norm; // layer and RMS norm by parts
mod profile; // where the time goes
mod recorded; // memory without numbers
mod residual; // gated residuals by parts
mod rotary; // pairs that turn
mod softmax; // weights of attention by all kinds of vectors
mod stored; // matrices that are decoded where they are multiplied
mod swiglu; // gated products
mod tape; // the way back through a stretch
mod tile;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Shape, Tensor};
use vtrain::rng::Rng;

fn fixtures(name: &str) -> HashMap<String, Tensor> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ops");
    candle_core::safetensors::load(folder.join(name), &Device::Cpu).unwrap()
}

/// The next tensor of a generator, as `draw` in the script has it.
fn draw(rng: &mut Rng, shape: impl Into<Shape>) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(rng.randn(shape.elem_count()), shape, &Device::Cpu).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// The largest difference, in parts of the largest number.
fn distance(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (numbers(found), numbers(expected));
    let scale = expected.iter().fold(1e-30f64, |scale, x| scale.max(x.abs()));
    let worst = found.iter().zip(&expected).fold(0f64, |worst, (a, b)| {
        // a comparison that is false for what is no number
        if (a - b).abs() <= worst { worst } else { (a - b).abs() }
    });
    worst / scale
}

#[track_caller]
fn assert_close(what: &str, found: &Tensor, expected: &Tensor, most: f64) {
    let off = distance(found, expected);
    assert!(off <= most, "{what}: off by {off:.2e}");
}

/// The same numbers behind gaps: every second of twice as many features.
fn with_gaps(x: &Tensor) -> Tensor {
    let twice = Tensor::stack(&[x, &x.ones_like().unwrap()], 0).unwrap();
    let last = twice.rank() - 1;
    let order: Vec<usize> = (1..=last).chain([0]).collect();
    let gaps = twice.permute(order).unwrap().contiguous().unwrap();
    let gaps = gaps.narrow(last, 0, 1).unwrap().squeeze(last).unwrap();
    assert!(!gaps.is_contiguous());
    gaps
}

/// The slope of `loss` at x, number by number, by central differences. All in f64.
fn slopes(x: &Tensor, loss: impl Fn(&Tensor) -> Result<Tensor>) -> Tensor {
    const STEP: f64 = 1e-6;
    let at = numbers(x);
    let value = |i: usize, by: f64| {
        let mut moved = at.clone();
        moved[i] += by;
        let moved = Tensor::from_vec(moved, x.dims(), &Device::Cpu).unwrap();
        loss(&moved).unwrap().to_scalar::<f64>().unwrap()
    };
    let slopes: Vec<f64> = (0..at.len())
        .map(|i| (value(i, STEP) - value(i, -STEP)) / (2.0 * STEP))
        .collect();
    Tensor::from_vec(slopes, x.dims(), &Device::Cpu).unwrap()
}

/// Checks that `compute` gives the same bits with 1, 2 and 5 threads.
fn assert_same_on_all_threads(compute: impl Fn() -> Vec<Tensor> + Sync) {
    let bits = |threads: usize| -> Vec<Vec<u32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let tensors = pool.install(&compute);
        let bits = |x: &Tensor| {
            let numbers = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            numbers.iter().map(|x| x.to_bits()).collect()
        };
        tensors.iter().map(bits).collect()
    };
    let one = bits(1);
    assert!(one == bits(2) && one == bits(5));
}
