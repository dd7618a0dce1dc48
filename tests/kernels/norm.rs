//! norm.cu against norms in f64.

use candle_core::DType;
use vtrain::ops::norm::{Norm, NormKind};
use vtrain::rng::Rng;

use super::card::Card;
use super::exact::{Exact, assert_exact, draw, rounded};
use super::rows::{Case, cases};

const EPS: f64 = 1e-5;

fn norms() -> impl Iterator<Item = (Case, Norm)> {
    let kinds = [NormKind::Layer, NormKind::Rms];
    cases().flat_map(move |case| {
        kinds.map(|kind| {
            let norm = Norm {
                kind,
                eps: EPS,
                parts: case.parts.to_vec(),
            };
            (case, norm)
        })
    })
}

/// Rows whose means are not 0, and every third so small that eps counts.
fn rows(rng: &mut Rng, case: &Case) -> Vec<f64> {
    let x = draw(rng, case.count() * case.width, case.dtype);
    let of = |(at, x): (usize, f64)| {
        let scale = if (at / case.width).is_multiple_of(3) { 2e-3 } else { 1.0 };
        rounded(scale * (1.5 * x + 2.0), case.dtype)
    };
    x.into_iter().enumerate().map(of).collect()
}

/// Mean and 1 / sqrt(variance + eps).
fn moments(kind: NormKind, x: &[f64]) -> (f64, f64) {
    let count = x.len() as f64;
    let mean = match kind {
        NormKind::Layer => x.iter().sum::<f64>() / count,
        NormKind::Rms => 0.0,
    };
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    // What is added comes to the kernels in f32.
    (mean, 1.0 / (variance + f64::from(EPS as f32)).sqrt())
}

/// n of a row. A number less its mean is off by roundings of both.
fn normed(kind: NormKind, x: &[f64]) -> Vec<Exact> {
    let (mean, inverse) = moments(kind, x);
    let of = |x: &f64| Exact::new((x - mean) * inverse, (x.abs() + mean.abs()) * inverse);
    x.iter().map(of).collect()
}

pub fn forward(card: &Card) {
    let mut rng = Rng::new(1);
    for (case, norm) in norms() {
        let what = format!("{:?} norm of {case:?}", norm.kind);
        let x = rows(&mut rng, &case);
        let [gain, offset] = [(); 2].map(|()| draw(&mut rng, case.table(), DType::F32));
        let mut expected = Vec::new();
        for (x, place) in x.chunks(case.width).zip(case.places()) {
            let tables = case.row(&gain, place).iter().zip(case.row(&offset, place));
            let of = |(n, (g, o)): (Exact, (&f64, &f64))| Exact::new(n.value * g + o, n.size * g.abs() + o.abs());
            expected.extend(normed(norm.kind, x).into_iter().zip(tables).map(of));
        }
        card.each_way(
            &what,
            |run| {
                let (x, y) = (run.given(&x, case.dtype), run.room(x.len(), case.dtype));
                let [gain, offset] = [&gain, &offset].map(|table| run.given(table, DType::F32));
                let launches = norm.launches(case.batch, case.width, case.dtype);
                run.launch(launches.forward(x.at(), [gain.at(), offset.at()], case.samples(), y.at()));
                [y.numbers()]
            },
            |[y]| assert_exact(&what, &y, &expected, case.dtype, 8.0),
        );
    }
}

/// dx of a row.
fn exact_back(kind: NormKind, x: &[f64], gain: &[f64], grad: &[f64]) -> Vec<Exact> {
    let (_, inverse) = moments(kind, x);
    let (n, count) = (normed(kind, x), x.len() as f64);
    let h: Vec<f64> = grad.iter().zip(gain).map(|(grad, gain)| grad * gain).collect();
    let mut plain = Exact::sum(h.iter().copied());
    if kind == NormKind::Rms {
        plain = Exact::default();
    }
    let along = h.iter().zip(&n).fold(Exact::default(), |sum, (h, n)| {
        Exact::new(sum.value + h * n.value, sum.size + (h * n.size).abs())
    });
    let of = |(h, n): (&f64, Exact)| {
        let value = (h - plain.value / count - n.value * along.value / count) * inverse;
        let size = (h.abs() + plain.size / count + n.size * along.size / count) * inverse;
        Exact::new(value, size)
    };
    h.iter().zip(n).map(of).collect()
}

pub fn back(card: &Card) {
    let mut rng = Rng::new(2);
    for (case, norm) in norms() {
        let what = format!("{:?} norm back of {case:?}", norm.kind);
        let (x, gain) = (rows(&mut rng, &case), draw(&mut rng, case.table(), DType::F32));
        let grad = draw(&mut rng, x.len(), case.dtype);
        let mut expected = Vec::new();
        let both = x.chunks(case.width).zip(grad.chunks(case.width));
        for ((x, grad), place) in both.zip(case.places()) {
            expected.extend(exact_back(norm.kind, x, case.row(&gain, place), grad));
        }
        card.each_way(
            &what,
            |run| {
                let [x, grad] = [&x, &grad].map(|numbers| run.given(numbers, case.dtype));
                let (dx, gain) = (run.room(expected.len(), case.dtype), run.given(&gain, DType::F32));
                let launches = norm.launches(case.batch, case.width, case.dtype);
                run.launch(launches.back(x.at(), gain.at(), case.samples(), grad.at(), dx.at()));
                [dx.numbers()]
            },
            |[dx]| assert_exact(&what, &dx, &expected, case.dtype, 8.0),
        );
    }
}

/// The gradients of gain and offset, and the moments before them.
pub fn tables(card: &Card) {
    let mut rng = Rng::new(3);
    for (case, norm) in norms() {
        let what = format!("tables of a {:?} norm of {case:?}", norm.kind);
        let (x, grad) = (
            rows(&mut rng, &case),
            draw(&mut rng, case.count() * case.width, case.dtype),
        );
        let mut of_rows = Vec::new();
        let (mut gains, mut offsets) = (Vec::new(), Vec::new());
        for (x, grad) in x.chunks(case.width).zip(grad.chunks(case.width)) {
            let (mean, inverse) = moments(norm.kind, x);
            let size = x.iter().map(|x| x.abs()).sum::<f64>() / case.width as f64;
            let mean_size = if norm.kind == NormKind::Layer { size } else { 0.0 };
            // Numbers less their mean are off by roundings of both; that counts where they are all but equal.
            let spread = x.iter().map(|x| (x - mean).abs() * (x.abs() + mean.abs())).sum::<f64>() / case.width as f64;
            let inverse_size = inverse * (1.0 + spread * inverse * inverse);
            of_rows.extend([Exact::new(mean, mean_size), Exact::new(inverse, inverse_size)]);
            for (n, grad) in normed(norm.kind, x).into_iter().zip(grad) {
                gains.push(Exact::new(n.value * grad, n.size * grad.abs()));
                offsets.push(Exact::new(*grad, grad.abs()));
            }
        }
        let (gains, offsets) = (case.summed(&gains), case.summed(&offsets));
        card.each_way(
            &what,
            |run| {
                let [x, grad] = [&x, &grad].map(|numbers| run.given(numbers, case.dtype));
                let launches = norm.launches(case.batch, case.width, case.dtype);
                let slices = launches.rows.slices();
                let [dgain, doffset] = [(); 2].map(|()| run.room(gains.len() * slices, DType::F32));
                let moments = run.own_room(of_rows.len(), DType::F32);
                run.launch(launches.moments(x.at(), moments.at()));
                run.launch(launches.tables(x.at(), grad.at(), moments.at(), [dgain.at(), doffset.at()]));
                let gathered = |sums: Vec<f64>| case.gathered(&sums, slices);
                [
                    moments.numbers(),
                    gathered(dgain.numbers()),
                    gathered(doffset.numbers()),
                ]
            },
            |[moments, dgain, doffset]| {
                assert_exact(&format!("moments: {what}"), &moments, &of_rows, DType::F32, 4.0);
                assert_exact(&format!("gain: {what}"), &dgain, &gains, DType::F32, 8.0);
                assert_exact(&format!("offset: {what}"), &doffset, &offsets, DType::F32, 4.0);
            },
        );
    }
}
