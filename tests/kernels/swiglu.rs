//! swiglu.cu against gated products in f64.

use candle_core::DType;
use vtrain::ops::swiglu::launch::swiglu;
use vtrain::rng::Rng;

use super::card::Card;
use super::exact::{BOTH, Exact, assert_exact, draw, rounded};

/// Rows and widths, with and without whole packs of 16 bytes, less and more than a block.
const SIZES: [[usize; 2]; 6] = [[1, 1], [3, 7], [2, 8], [5, 24], [1, 1003], [40, 64]];

/// Numbers of the two halves, and some where the exponential overflows or vanishes.
fn inputs(rng: &mut Rng, count: usize, dtype: DType) -> Vec<f64> {
    const EDGES: [f64; 5] = [0.0, 12.0, -12.0, 100.0, -100.0];
    let mut x: Vec<f64> = draw(rng, count, dtype)
        .into_iter()
        .map(|x| rounded(2.0 * x, dtype))
        .collect();
    for (x, edge) in x.iter_mut().skip(1).step_by(3).zip(EDGES) {
        *x = edge;
    }
    x
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub fn forward(card: &Card) {
    let mut rng = Rng::new(1);
    for (dtype, [rows, width]) in BOTH.into_iter().flat_map(|dtype| SIZES.map(|sizes| (dtype, sizes))) {
        let what = format!("{rows} rows of {width} {dtype:?}");
        let x = inputs(&mut rng, 2 * rows * width, dtype);
        let mut expected = Vec::new();
        for x in x.chunks(2 * width) {
            let (a, b) = x.split_at(width);
            // The exponent's rounding counts as often as it is large.
            let of = |(a, b): (&f64, &f64)| {
                let y = a * b * sigmoid(*b);
                Exact::new(y, y.abs() * (1.0 + b.abs()))
            };
            expected.extend(a.iter().zip(b).map(of));
        }
        card.each_way(
            &what,
            |run| {
                let (x, y) = (run.given(&x, dtype), run.room(rows * width, dtype));
                run.launch(swiglu(x.at(), None, y.at(), [rows, width], dtype));
                [y.numbers()]
            },
            |[y]| assert_exact(&what, &y, &expected, dtype, 4.0),
        );
    }
}

pub fn back(card: &Card) {
    let mut rng = Rng::new(2);
    for (dtype, [rows, width]) in BOTH.into_iter().flat_map(|dtype| SIZES.map(|sizes| (dtype, sizes))) {
        let what = format!("gradient of {rows} rows of {width} {dtype:?}");
        let x = inputs(&mut rng, 2 * rows * width, dtype);
        let grad = draw(&mut rng, rows * width, dtype);
        let mut expected = Vec::new();
        for (x, grad) in x.chunks(2 * width).zip(grad.chunks(width)) {
            let (a, b) = x.split_at(width);
            let of_a = |(b, dy): (&f64, &f64)| {
                let da = dy * b * sigmoid(*b);
                Exact::new(da, da.abs() * (1.0 + b.abs()))
            };
            let of_b = |(i, dy): (usize, &f64)| {
                let (s, grown) = (sigmoid(b[i]), 1.0 + b[i].abs());
                let size = (dy * a[i]).abs() * s * grown * grown;
                Exact::new(dy * a[i] * s * (1.0 + b[i] * (1.0 - s)), size)
            };
            expected.extend(b.iter().zip(grad).map(of_a));
            expected.extend(grad.iter().enumerate().map(of_b));
        }
        card.each_way(
            &what,
            |run| {
                let [x, grad] = [&x, &grad].map(|numbers| run.given(numbers, dtype));
                let dx = run.room(2 * rows * width, dtype);
                run.launch(swiglu(x.at(), Some(grad.at()), dx.at(), [rows, width], dtype));
                [dx.numbers()]
            },
            |[dx]| assert_exact(&what, &dx, &expected, dtype, 4.0),
        );
    }
}
