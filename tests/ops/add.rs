use candle_core::{DType, Result, Tensor, Var};
use vtrain::ops::add::add;
use vtrain::ops::tape::record;
use vtrain::ops::vjp::Cotangent;

use super::elementwise::{equals_formula, holds_in_any_form, numbers, randn};

fn sum(inputs: &[Tensor]) -> Result<Tensor> {
    add(&inputs[0], &inputs[1])
}

#[test]
fn sums_and_their_gradients_follow_the_formula() {
    let formula = |inputs: &[Vec<f64>]| inputs[0].iter().zip(&inputs[1]).map(|(a, b)| a + b).collect();
    equals_formula(&sum, &formula, &[randn(1, &[2, 3, 7]), randn(2, &[2, 3, 7])]);
}

#[test]
fn a_sum_holds_in_any_form() {
    let alike = |inputs: &[Tensor]| add(&inputs[0], &inputs[1].to_dtype(inputs[0].dtype())?);
    holds_in_any_form(&alike, &[randn(1, &[2, 301, 77]), randn(2, &[2, 301, 77])]);
}

#[test]
fn a_sum_is_candles_to_the_bit() {
    for dtype in [DType::F32, DType::BF16] {
        let [a, b] = [1, 2].map(|seed| randn(seed, &[5, 1001]).to_dtype(dtype).unwrap());
        let (found, expected) = (add(&a, &b).unwrap(), (&a + &b).unwrap());
        assert_eq!(numbers(&found), numbers(&expected), "{dtype:?}");
    }
}

#[test]
fn a_recorded_sum_holds_nothing_and_leads_to_both_even_where_they_are_one() {
    let gradient = randn(3, &[4, 6]);
    let [a, b] = [1, 2].map(|seed| Var::from_tensor(&randn(seed, &[4, 6])).unwrap());
    let (y, tape) = record(|| add(&add(&a, &b)?, &a)).unwrap();
    assert!(tape.bytes() <= 16, "outlines of four inputs, {} bytes", tape.bytes());
    let given = Cotangent {
        output: y,
        gradient: gradient.clone(),
    };
    let mut gradients = tape.backward(&[given]).unwrap();
    let twice = (&gradient * 2.0).unwrap();
    assert_eq!(numbers(&gradients.remove(&a).unwrap().unwrap()), numbers(&twice));
    assert_eq!(numbers(&gradients.remove(&b).unwrap().unwrap()), numbers(&gradient));
    let (_, tape) = record(|| add(&a, &b.detach())).unwrap();
    assert!(tape.by_candle().is_empty());
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = randn(1, &[2, 3]);
    assert!(add(&x, &randn(2, &[3])).is_err());
    assert!(add(&x, &x.to_dtype(DType::BF16).unwrap()).is_err());
}
