use candle_core::{Result, Tensor, Var};
use vtrain::ops::residual::{gated_residual, reference};

use super::elementwise::{equals_formula, equals_torch, holds_in_any_form, numbers, randn};

fn residual(parts: &[usize]) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    let parts = parts.to_vec();
    move |inputs| gated_residual(&inputs[0], &inputs[1], &inputs[2], &parts)
}

#[test]
fn gated_residuals_are_those_of_torch() {
    for name in ["residual", "residual-shared"] {
        equals_torch(name, &["x", "update", "gate"], &residual(&[3, 6]));
        equals_torch(name, &["x", "update", "gate"], &|inputs| {
            reference(&inputs[0], &inputs[1], &inputs[2], &[3, 6])
        });
    }
}

#[test]
fn gated_residuals_and_their_gradients_follow_the_formula() {
    const WIDTH: usize = 7;
    for (parts, samples) in [(&[3, 0, 2][..], 2), (&[5], 1), (&[1], 2)] {
        let rows: usize = parts.iter().sum();
        let part_of: Vec<usize> = (0..parts.len()).flat_map(|part| vec![part; parts[part]]).collect();
        let formula = |inputs: &[Vec<f64>]| {
            let [x, update, gate] = inputs else { panic!() };
            let y = x.iter().zip(update).enumerate().map(|(i, (x, update))| {
                let row = i / WIDTH;
                let table = (row / rows * parts.len() + part_of[row % rows]) * WIDTH % gate.len();
                x + gate[table + i % WIDTH] * update
            });
            y.collect()
        };
        let x = |seed| randn(seed, &[2, rows, WIDTH]);
        let inputs = [x(1), x(2), randn(3, &[samples, parts.len(), WIDTH])];
        equals_formula(&residual(parts), &formula, &inputs);
    }
}

#[test]
fn a_gated_residual_holds_in_any_form() {
    let x = |seed| randn(seed, &[2, 201, 33]);
    holds_in_any_form(&residual(&[70, 131]), &[x(1), x(2), randn(3, &[2, 2, 33])]);
}

#[test]
fn nothing_stays_nothing_and_what_does_not_fit_is_refused() {
    let empty = randn(1, &[2, 0, 8]);
    let y = gated_residual(&empty, &empty, &randn(2, &[1, 1, 8]), &[0]).unwrap();
    assert_eq!(y.dims(), [2, 0, 8]);
    let x = randn(1, &[2, 3, 8]);
    assert!(gated_residual(&x, &x, &randn(2, &[1, 1, 8]), &[2]).is_err());
    assert!(gated_residual(&x, &x, &randn(2, &[1, 1, 8]), &[1, 2]).is_err());
    assert!(gated_residual(&x, &randn(1, &[1, 3, 8]), &randn(2, &[1, 1, 8]), &[3]).is_err());
}

#[test]
fn only_what_learns_gets_a_gradient() {
    let (x, gate) = (randn(1, &[2, 3, 8]), randn(2, &[1, 1, 8]));
    let update = Var::from_tensor(&x).unwrap();
    let y = gated_residual(&x, &update, &gate, &[3]).unwrap();
    let store = y.sum_all().unwrap().backward().unwrap();
    let expected = gate.broadcast_as((2, 3, 8)).unwrap();
    assert_eq!(numbers(store.get(&update).unwrap()), numbers(&expected));
    assert!(store.get(&x).is_none() && store.get(&gate).is_none());
}
