use candle_core::{DType, Device, Result, Tensor};
use vtrain::ops::swiglu::swiglu;

use super::elementwise::{equals_formula, holds_in_any_form, numbers, randn};

fn gated(x: &[Tensor]) -> Result<Tensor> {
    swiglu(&x[0])
}

#[test]
fn gated_products_and_their_gradients_follow_the_formula() {
    let formula = |x: &[Vec<f64>]| {
        let rows = x[0].chunks(14);
        let products = rows.flat_map(|row| (0..7).map(move |i| row[i] * row[i + 7] / (1.0 + (-row[i + 7]).exp())));
        products.collect()
    };
    let x = (randn(1, &[5, 14]) * 3.0).unwrap();
    equals_formula(&gated, &formula, &[x]);
}

#[test]
fn gated_products_hold_in_any_form() {
    holds_in_any_form(&gated, &[randn(1, &[20_000, 6])]);
    holds_in_any_form(&gated, &[randn(2, &[3, 70_000])]);
}

#[test]
fn gated_products_know_their_limits() {
    let x = Tensor::new(&[[2f32, 2.0, 2.0, -1e4, 0.0, 1e4]], &Device::Cpu).unwrap();
    let y = numbers(&swiglu(&x).unwrap());
    assert!(y[0].abs() < 1e-30 && y[1..] == [0.0, 2e4], "{y:?}");
    assert_eq!(swiglu(&randn(1, &[0, 4])).unwrap().dims(), [0, 2]);
    assert_eq!(swiglu(&randn(1, &[4, 0])).unwrap().dims(), [4, 0]);
    assert!(swiglu(&randn(1, &[4, 3])).is_err());
    assert_eq!(
        swiglu(&randn(1, &[4, 4]).to_dtype(DType::BF16).unwrap())
            .unwrap()
            .dtype(),
        DType::BF16
    );
}
