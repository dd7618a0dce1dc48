use candle_core::{DType, Result, Tensor, Var};
use vtrain::ops::add::add;
use vtrain::ops::join::{join, part};
use vtrain::ops::tape::record;
use vtrain::ops::vjp::Cotangent;

use super::elementwise::{holds_in_any_form, numbers, randn};

fn joined(inputs: &[Tensor]) -> Result<Tensor> {
    join(&inputs[0], &inputs[1].to_dtype(inputs[0].dtype())?, 1)
}

#[test]
fn a_joint_tensor_is_candles_to_the_bit_along_every_axis() {
    for (dim, a, b) in [
        (0, [2, 3, 5], [4, 3, 5]),
        (1, [2, 3, 5], [2, 1, 5]),
        (2, [2, 3, 5], [2, 3, 7]),
    ] {
        for dtype in [DType::F32, DType::BF16, DType::F64] {
            let [a, b] = [randn(1, &a), randn(2, &b)].map(|x| x.to_dtype(dtype).unwrap());
            let (found, expected) = (join(&a, &b, dim).unwrap(), Tensor::cat(&[&a, &b], dim).unwrap());
            assert_eq!((found.dims(), found.dtype()), (expected.dims(), dtype));
            assert_eq!(numbers(&found), numbers(&expected), "{dtype:?} along {dim}");
            let (first, size) = (a.dim(dim).unwrap(), b.dim(dim).unwrap());
            assert_eq!(numbers(&part(&found, dim, first, size).unwrap()), numbers(&b));
        }
    }
}

#[test]
fn a_joint_tensor_holds_in_any_form() {
    holds_in_any_form(&joined, &[randn(1, &[2, 301, 77]), randn(2, &[2, 30, 77])]);
}

/// Parts of one tensor as recorded, and as candle derives them.
fn parts_and_their_gradient(batch: usize, parts: &[(usize, usize)]) -> [Vec<f64>; 2] {
    let x = Var::from_tensor(&randn(7, &[batch, 9, 4])).unwrap();
    let gradients: Vec<Tensor> = (0u64..)
        .zip(parts)
        .map(|(i, (_, count))| randn(i, &[batch, *count, 4]))
        .collect();
    let cut = |whole: &Tensor| -> Result<Vec<Tensor>> {
        let whole = &whole.reshape((batch, 9, 2, 2))?.flatten_from(2)?; // as after attention
        let cut = parts.iter().map(|(start, count)| part(whole, 1, *start, *count));
        // An op between a part and the end, so that its gradient comes from a line of the tape.
        cut.map(|part| part.and_then(|part| add(&part, &part.ones_like()?)))
            .collect()
    };
    let given = |outputs: Vec<Tensor>| -> Vec<Cotangent> {
        let both = outputs.into_iter().zip(&gradients);
        both.map(|(output, gradient)| Cotangent {
            output,
            gradient: gradient.clone(),
        })
        .collect()
    };
    let (outputs, tape) = record(|| cut(&x)).unwrap();
    let mut found = tape.backward(&given(outputs)).unwrap();
    let mut expected = vec![0.0; batch * 9 * 4];
    for ((start, count), gradient) in parts.iter().zip(&gradients) {
        for (i, number) in numbers(gradient).into_iter().enumerate() {
            let (sample, inside) = (i / (count * 4), i % (count * 4));
            expected[(sample * 9 + start) * 4 + inside] += number;
        }
    }
    [numbers(&found.remove(&x).unwrap().unwrap()), expected]
}

#[test]
fn gradients_of_parts_are_put_together() {
    for batch in [1, 2] {
        for parts in [
            &[(0, 4), (4, 5)][..],     // all of it
            &[(4, 5), (0, 4)],         // the other way round
            &[(2, 3)],                 // zeros on both sides
            &[(0, 2), (5, 2), (2, 3)], // zeros behind
            &[(1, 4), (1, 4)],         // the same part twice
            &[(0, 5), (3, 4)],         // parts that meet
            &[(0, 9), (3, 2)],         // all, and a part of it
            &[(3, 2), (0, 9), (8, 1)],
        ] {
            let [found, expected] = parts_and_their_gradient(batch, parts);
            let most = found
                .iter()
                .zip(&expected)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max);
            assert!(most < 1e-6, "{batch} {parts:?}: {found:?}, {expected:?}");
        }
    }
}

#[test]
fn parts_of_two_axes_are_still_candles() {
    let x = Var::from_tensor(&randn(1, &[3, 4, 5])).unwrap();
    let (y, tape) = record(|| {
        join(
            &x.narrow(0, 1, 2)?.narrow(1, 1, 2)?,
            &x.narrow(0, 0, 2)?.narrow(1, 0, 1)?,
            1,
        )
    })
    .unwrap();
    let gradient = y.ones_like().unwrap();
    let given = Cotangent { output: y, gradient };
    let found = tape.backward(&[given]).unwrap().remove(&x).unwrap().unwrap();
    let count = |x: &[f64]| x.iter().sum::<f64>();
    assert_eq!(count(&numbers(&found)), 30.0);
    assert_eq!(
        numbers(&found.narrow(0, 1, 1).unwrap().narrow(1, 0, 1).unwrap()),
        [1.0; 5]
    );
    assert_eq!(
        numbers(&found.narrow(0, 2, 1).unwrap().narrow(1, 0, 1).unwrap()),
        [0.0; 5]
    );
}

#[test]
fn a_recorded_joint_tensor_holds_nothing() {
    let [a, b] = [1, 2].map(|seed| Var::from_tensor(&randn(seed, &[4, 6])).unwrap());
    let (_, tape) = record(|| join(&a, &b, 0)).unwrap();
    assert!(
        tape.bytes() <= 12,
        "outlines of two inputs and the output, {} bytes",
        tape.bytes()
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = randn(1, &[2, 3]);
    assert!(join(&x, &randn(2, &[3]), 0).is_err());
    assert!(join(&x, &randn(2, &[3, 4]), 0).is_err());
    assert!(join(&x, &x, 2).is_err());
    assert!(join(&x, &x.to_dtype(DType::BF16).unwrap(), 0).is_err());
    assert!(part(&x, 1, 2, 2).is_err());
}
