//! activation.cu against GELU and SiLU in f64.

use candle_core::DType;
use vtrain::ops::activation::Activation;
use vtrain::rng::Rng;

use super::card::Card;
use super::exact::{BOTH, Exact, assert_exact, draw, rounded};

const KINDS: [Activation; 3] = [Activation::GeluErf, Activation::GeluTanh, Activation::Silu];

/// The normal distribution's function: libm's erfc.
fn normal(x: f64) -> f64 {
    unsafe extern "C" {
        safe fn erfc(x: f64) -> f64;
    }
    0.5 * erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

const SLOPE: f64 = 0.797_884_560_802_865_4; // sqrt(2 / pi)
const CUBE: f64 = 0.044_715;

/// f(x) and f'(x).
fn exact(kind: Activation, x: f64) -> (Exact, Exact) {
    match kind {
        Activation::GeluErf => {
            let (y, bell) = (x * normal(x), x * density(x));
            // The exponent's rounding counts as often as it is large.
            let slope = Exact::new(normal(x) + bell, normal(x) + bell.abs() * (1.0 + 0.5 * x * x));
            (Exact::new(y, y.abs()), slope)
        }
        Activation::GeluTanh => {
            let t = (SLOPE * (x + CUBE * x * x * x)).tanh();
            let inner = SLOPE * (1.0 + 3.0 * CUBE * x * x);
            let (plain, bell) = (0.5 * (1.0 + t), 0.5 * x * (1.0 - t * t) * inner);
            // 1 + t and 1 - t^2 cancel; t itself is off by a rounding of its argument.
            let slope_size = 1.0 + 0.5 * x.abs() * inner;
            (Exact::new(x * plain, x.abs()), Exact::new(plain + bell, slope_size))
        }
        Activation::Silu => {
            let s = sigmoid(x);
            let grown = 1.0 + x.abs(); // the exponent's rounding
            let slope = Exact::new(s * (1.0 + x * (1.0 - s)), s * (1.0 + x.abs()) * grown);
            (Exact::new(x * s, (x * s).abs() * grown), slope)
        }
    }
}

/// Random numbers, and those where something overflows or vanishes.
fn inputs(rng: &mut Rng, count: usize, dtype: DType) -> Vec<f64> {
    const EDGES: [f64; 8] = [0.0, -0.0, 3.0, -3.0, 12.0, -12.0, 100.0, -100.0];
    let mut x: Vec<f64> = draw(rng, count, dtype)
        .into_iter()
        .map(|x| rounded(2.0 * x, dtype))
        .collect();
    for (x, edge) in x.iter_mut().skip(3).step_by(5).zip(EDGES) {
        *x = edge;
    }
    x
}

/// Counts with and without a tail behind packs of 16 bytes, less and more than a block.
const COUNTS: [usize; 6] = [1, 7, 8, 255, 1003, 2056];

pub fn forward(card: &Card) {
    let mut rng = Rng::new(1);
    for (kind, dtype, count) in cases() {
        let what = format!("{kind:?} of {count} {dtype:?}");
        let x = inputs(&mut rng, count, dtype);
        let expected: Vec<Exact> = x.iter().map(|x| exact(kind, *x).0).collect();
        card.each_way(
            &what,
            |run| {
                let (x, y) = (run.given(&x, dtype), run.room(count, dtype));
                run.launch(kind.launch(x.at(), None, y.at(), count, dtype));
                [y.numbers()]
            },
            |[y]| assert_exact(&what, &y, &expected, dtype, 3.0),
        );
    }
}

pub fn back(card: &Card) {
    let mut rng = Rng::new(2);
    for (kind, dtype, count) in cases() {
        let what = format!("{kind:?} back of {count} {dtype:?}");
        let (x, grad) = (inputs(&mut rng, count, dtype), draw(&mut rng, count, dtype));
        let slopes = x.iter().zip(&grad).map(|(x, grad)| {
            let slope = exact(kind, *x).1;
            Exact::new(slope.value * grad, slope.size * grad.abs())
        });
        let expected: Vec<Exact> = slopes.collect();
        card.each_way(
            &what,
            |run| {
                let (x, grad, dx) = (run.given(&x, dtype), run.given(&grad, dtype), run.room(count, dtype));
                run.launch(kind.launch(x.at(), Some(grad.at()), dx.at(), count, dtype));
                [dx.numbers()]
            },
            |[dx]| assert_exact(&what, &dx, &expected, dtype, 4.0),
        );
    }
}

/// Simulates a card with fewer blocks than numbers: threads loop over more.
pub fn in_few_blocks(card: &Card) {
    let mut rng = Rng::new(3);
    for (kind, dtype, count) in cases().filter(|(_, _, count)| *count > 1000) {
        let what = format!("{kind:?} of {count} {dtype:?} in a block");
        let x = inputs(&mut rng, count, dtype);
        let expected: Vec<Exact> = x.iter().map(|x| exact(kind, *x).0).collect();
        card.each_way(
            &what,
            |run| {
                let (x, y) = (run.given(&x, dtype), run.room(count, dtype));
                let mut launch = kind.launch(x.at(), None, y.at(), count, dtype).unwrap();
                launch.grid.blocks = [1, 1, 1];
                run.launch(Ok(launch));
                [y.numbers()]
            },
            |[y]| assert_exact(&what, &y, &expected, dtype, 3.0),
        );
    }
}

fn cases() -> impl Iterator<Item = (Activation, DType, usize)> {
    let types = KINDS.into_iter().flat_map(|kind| BOTH.map(|dtype| (kind, dtype)));
    types.flat_map(|(kind, dtype)| COUNTS.map(|count| (kind, dtype, count)))
}
