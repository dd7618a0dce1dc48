use candle_core::{Result, Tensor};
use vtrain::ops::norm::{Norm, NormKind};

use super::elementwise::{equals_formula, equals_torch, holds_in_any_form, numbers, randn};

const EPS: f64 = 1e-5;
const WIDTH: usize = 19;

fn norm(kind: NormKind, parts: &[usize]) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    let parts = parts.to_vec();
    move |inputs| {
        let norm = Norm {
            kind,
            eps: EPS,
            parts: parts.clone(),
        };
        norm.forward(&inputs[0], &inputs[1], &inputs[2])
    }
}

/// A shared table is read again by each sample.
fn formula(kind: NormKind, parts: &[usize], inputs: &[Vec<f64>]) -> Vec<f64> {
    let [x, gain, offset] = inputs else { panic!() };
    let rows: usize = parts.iter().sum();
    let part_of: Vec<usize> = (0..parts.len()).flat_map(|part| vec![part; parts[part]]).collect();
    let mut y = Vec::new();
    for (at, row) in x.chunks(WIDTH).enumerate() {
        let mean = match kind {
            NormKind::Layer => row.iter().sum::<f64>() / WIDTH as f64,
            NormKind::Rms => 0.0,
        };
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / WIDTH as f64;
        let table = (at / rows * parts.len() + part_of[at % rows]) * WIDTH % gain.len();
        for (i, x) in row.iter().enumerate() {
            y.push((x - mean) / (variance + EPS).sqrt() * gain[table + i] + offset[table + i]);
        }
    }
    y
}

#[test]
fn norms_are_those_of_torch() {
    for (name, kind) in [
        ("layer", NormKind::Layer),
        ("rms", NormKind::Rms),
        ("layer-shared", NormKind::Layer),
    ] {
        equals_torch(name, &["x", "gain", "offset"], &norm(kind, &[3, 6]));
        equals_torch(name, &["x", "gain", "offset"], &|inputs| {
            let parts = vec![3, 6];
            Norm { kind, eps: EPS, parts }.reference(&inputs[0], &inputs[1], &inputs[2])
        });
    }
}

#[test]
fn norms_and_their_gradients_follow_the_formula() {
    for kind in [NormKind::Layer, NormKind::Rms] {
        for (parts, samples) in [(&[3, 0, 2][..], 2), (&[5], 1), (&[1], 2)] {
            let rows = parts.iter().sum();
            let table = |seed| randn(seed, &[samples, parts.len(), WIDTH]);
            let inputs = [randn(1, &[2, rows, WIDTH]), table(2), table(3)];
            equals_formula(&norm(kind, parts), &|inputs| formula(kind, parts, inputs), &inputs);
        }
    }
}

#[test]
fn a_norm_holds_in_any_form() {
    for kind in [NormKind::Layer, NormKind::Rms] {
        let table = |seed| randn(seed, &[2, 2, 33]);
        holds_in_any_form(&norm(kind, &[70, 131]), &[randn(1, &[2, 201, 33]), table(2), table(3)]);
    }
}

#[test]
fn rows_may_have_more_axes() {
    let (x, gain, offset) = (randn(1, &[2, 5, 3, 8]), randn(2, &[1, 1, 8]), randn(3, &[1, 1, 8]));
    let y = norm(NormKind::Layer, &[15])(&[x.clone(), gain.clone(), offset.clone()]).unwrap();
    assert_eq!(y.dims(), x.dims());
    let flat = norm(NormKind::Layer, &[15])(&[x.reshape((2, 15, 8)).unwrap(), gain, offset]).unwrap();
    assert_eq!(numbers(&y), numbers(&flat));
}

#[test]
fn nothing_is_normed_to_nothing_and_what_does_not_fit_is_refused() {
    let table = |parts| randn(2, &[1, parts, 8]);
    for shape in [[0, 3, 8], [2, 0, 8]] {
        let y = norm(NormKind::Layer, &[shape[1]])(&[randn(1, &shape), table(1), table(1)]).unwrap();
        assert_eq!(y.dims(), shape);
    }
    let x = randn(1, &[2, 3, 8]);
    assert!(norm(NormKind::Layer, &[2])(&[x.clone(), table(1), table(1)]).is_err());
    assert!(norm(NormKind::Layer, &[2, 1])(&[x.clone(), table(1), table(2)]).is_err());
    assert!(norm(NormKind::Layer, &[3])(&[x, randn(2, &[3, 1, 8]), table(1)]).is_err());
}

#[test]
fn only_what_learns_gets_a_gradient() {
    let (x, table) = (randn(1, &[2, 3, 8]), randn(2, &[1, 1, 8]));
    let gain = candle_core::Var::from_tensor(&table).unwrap();
    let y = norm(NormKind::Layer, &[3])(&[x.clone(), gain.as_tensor().clone(), table.clone()]).unwrap();
    let store = y.sum_all().unwrap().backward().unwrap();
    assert!(store.get(&gain).is_some());
    assert!(store.get(&x).is_none() && store.get(&table).is_none());
}
