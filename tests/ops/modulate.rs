use candle_core::{DType, Device, Tensor};
use vtrain::ops::modulate::{Modulation, modulated_silu};

use super::elementwise::{numbers, randn};

/// Sizes of x and of the tables (frames, rows, columns); an eps, where there is an RMS norm.
type Case = ([usize; 3], [usize; 3], Option<f64>);
const CASES: [Case; 4] = [
    ([3, 4, 6], [1, 1, 1], None),
    ([3, 4, 6], [2, 2, 3], None),
    ([4, 5, 3], [2, 2, 2], Some(1e-6)),
    ([1, 3, 3], [1, 1, 1], Some(1e-24)),
];
const BATCH: usize = 2;
const CHANNELS: usize = 21;

/// In f64, number by number.
fn by_definition(x: &[f64], scale: &[f64], shift: &[f64], (size, table, rms_eps): Case) -> Vec<f64> {
    let pixels = size.iter().product::<usize>();
    let frame = |frame: usize| match size[0] % 2 {
        1 if size[0] > 1 && table[0] > 1 && frame == 0 => 0,
        1 if size[0] > 1 && table[0] > 1 => 1 + (frame - 1) * (table[0] - 1) / (size[0] - 1),
        _ => frame * table[0] / size[0],
    };
    let mut y = Vec::new();
    for (i, pixel) in x.chunks_exact(CHANNELS).enumerate() {
        let (sample, place) = (i / pixels, i % pixels);
        let (f, h, w) = (place / size[2] / size[1], place / size[2] % size[1], place % size[2]);
        let row = sample * table[0] + frame(f);
        let row = (row * table[1] + h * table[1] / size[1]) * table[2] + w * table[2] / size[2];
        let mean = pixel.iter().map(|x| x * x).sum::<f64>() / CHANNELS as f64;
        let r = rms_eps.map_or(1.0, |eps| (mean + eps).sqrt().recip());
        for (c, x) in pixel.iter().enumerate() {
            let x = x * r * scale[row * CHANNELS + c] + shift[row * CHANNELS + c];
            y.push(x / (1.0 + (-x).exp()));
        }
    }
    y
}

/// A clip whose mean is `mean` deviations from 0, and tables that subtract the mean again, both (B, f, h, w, C).
fn inputs((size, table, rms_eps): Case, mean: f64, dtype: DType) -> (Tensor, Tensor, Tensor) {
    let shape = |[f, h, w]: [usize; 3]| [BATCH, f, h, w, CHANNELS];
    let x = (randn(1, &shape(size)) + mean).unwrap().to_dtype(dtype).unwrap();
    let scale = ((randn(2, &shape(table)) * 0.1).unwrap() + 1.0).unwrap();
    // An RMS norm brings the mean close to 1.
    let mean = if rms_eps.is_some() {
        mean / (mean * mean + 1.0).sqrt()
    } else {
        mean
    };
    let shift = ((&scale * -mean).unwrap() + (randn(3, &shape(table)) * 0.3).unwrap()).unwrap();
    (x, scale, shift)
}

fn run(x: &Tensor, scale: &Tensor, shift: &Tensor, rms_eps: Option<f64>) -> Tensor {
    let modulation = Modulation { scale, shift, rms_eps };
    modulated_silu(x, modulation).unwrap()
}

#[test]
fn tables_are_applied_as_their_definition_says() {
    for case in CASES {
        let (x, scale, shift) = inputs(case, 0.0, DType::F32);
        let expected = by_definition(&numbers(&x), &numbers(&scale), &numbers(&shift), case);
        let found = run(&x, &scale, &shift, case.2);
        for (found, expected) in numbers(&found).iter().zip(expected) {
            assert!(
                (found - expected).abs() <= 2e-6 * expected.abs().max(1.0),
                "{found} {expected}"
            );
        }
    }
}

#[test]
fn bf16_is_rounded_once_even_where_the_mean_is_far_larger_than_the_deviation() {
    for case in CASES {
        let (x, scale, shift) = inputs(case, 5.0, DType::BF16);
        let expected = by_definition(&numbers(&x), &numbers(&scale), &numbers(&shift), case);
        let found = run(&x, &scale, &shift, case.2);
        assert_eq!(found.dtype(), DType::BF16);
        let expected = Tensor::new(expected, &Device::Cpu).unwrap();
        let expected = expected.to_dtype(DType::F32).unwrap();
        for (found, expected) in numbers(&found).iter().zip(numbers(&expected)) {
            // Half of the last place of bf16, and what f32 rounds off.
            let most = expected.abs() / 256.0 + 2e-6;
            assert!((found - expected).abs() <= most, "{found} {expected}");
        }
    }
}

#[test]
fn tables_that_are_not_f32_or_do_not_fit_are_refused() {
    let (x, scale, shift) = inputs(CASES[1], 0.0, DType::F32);
    let narrow = scale.to_dtype(DType::BF16).unwrap();
    let refused = |scale: &Tensor, shift: &Tensor| {
        let rms_eps = None;
        modulated_silu(&x, Modulation { scale, shift, rms_eps }).is_err()
    };
    let one = |table: &Tensor| table.narrow(0, 0, 1).unwrap();
    assert!(!refused(&scale, &shift));
    assert!(refused(&narrow, &shift));
    assert!(refused(&one(&scale), &shift));
    assert!(refused(&one(&scale), &one(&shift)));
}
