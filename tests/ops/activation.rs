use candle_core::{Device, Result, Tensor};
use vtrain::ops::activation::{gelu_erf, gelu_tanh, silu};

use super::elementwise::{Op, equals_formula, equals_torch, holds_in_any_form, numbers, randn};

const ALL: [(&str, Op); 3] = [
    ("gelu-erf", &|x: &[Tensor]| gelu_erf(&x[0])),
    ("gelu-tanh", &|x: &[Tensor]| gelu_tanh(&x[0])),
    ("silu", &|x: &[Tensor]| silu(&x[0])),
];

#[test]
fn activations_are_those_of_torch() {
    for (name, op) in ALL {
        equals_torch(name, &["x"], op);
    }
}

#[test]
fn activations_and_their_gradients_follow_the_formula() {
    let tanh = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let erf = |x: f64| {
        // x P(x), with P by Simpson's rule over the density from 0 to x.
        const PARTS: usize = 200;
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let factor = |i: usize| match i {
            0 | PARTS => 1.0,
            i if i % 2 == 1 => 4.0,
            _ => 2.0,
        };
        let terms = (0..=PARTS).map(|i| factor(i) * density(x * i as f64 / PARTS as f64));
        x * (0.5 + terms.sum::<f64>() * x / (3.0 * PARTS as f64))
    };
    let formulas: [(Op, &dyn Fn(f64) -> f64); 3] = [(ALL[0].1, &erf), (ALL[1].1, &tanh), (ALL[2].1, &silu)];
    for (op, formula) in formulas {
        let x = (randn(1, &[5, 13]) * 3.0).unwrap();
        equals_formula(op, &|x| x[0].iter().map(|x| formula(*x)).collect(), &[x]);
    }
}

#[test]
fn activations_hold_in_any_form() {
    for (_, op) in ALL {
        holds_in_any_form(op, &[randn(1, &[40_000, 3])]);
    }
}

#[test]
fn activations_know_their_limits() {
    let x = Tensor::new(&[-1e4f32, -100.0, 0.0, 100.0, 1e4], &Device::Cpu).unwrap();
    for (name, op) in ALL {
        let y = numbers(&op(std::slice::from_ref(&x)).unwrap());
        assert_eq!(y[2..], numbers(&x)[2..], "{name}");
        assert!(y[..2].iter().all(|y| y.abs() <= 1e-30), "{name}: {y:?}");
        assert_eq!(op(&[randn(1, &[0, 3])]).unwrap().dims(), [0, 3], "{name}");
    }
}

#[test]
fn other_numbers_than_f32_and_bf16_are_refused() {
    let x = Tensor::zeros(3, candle_core::DType::F64, &Device::Cpu).unwrap();
    let refused: Result<Tensor> = silu(&x);
    assert!(refused.is_err());
}
