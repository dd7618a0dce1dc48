//! tiled.cu against attention in f64.

use candle_core::DType;
use vtrain::ops::attention::launch::{Masked, Read, ReadBack, Tiled};
use vtrain::ops::attention::{Sizes, mask_strides};
use vtrain::rng::Rng;

use super::card::{Card, Lent, Run};
use super::exact::{BOTH, Exact, assert_exact, draw, rounded};

/// A mask (B or 1, H or 1, S or 1, L), by what it has of its own.
#[derive(Debug, Clone, Copy)]
struct Own {
    samples: bool,
    heads: bool,
    queries: bool,
}

/// Batch, queries, keys, heads, features; the mask.
type Shape = ([usize; 5], Option<Own>);

const fn own(samples: bool, heads: bool, queries: bool) -> Option<Own> {
    Some(Own {
        samples,
        heads,
        queries,
    })
}

/// Less than a tile, whole tiles, tails of queries and of keys, several tiles; features up to the widest that there are.
const SHAPES: [Shape; 10] = [
    ([1, 1, 1, 1, 1], None),
    ([2, 16, 16, 1, 16], None),
    ([1, 5, 33, 2, 8], None),
    ([2, 33, 5, 3, 17], own(true, false, false)),
    ([2, 20, 40, 2, 33], own(false, false, true)),
    ([2, 17, 19, 2, 24], own(true, true, true)),
    ([1, 40, 20, 3, 5], own(false, true, false)),
    ([1, 18, 34, 1, 64], own(true, false, true)),
    ([1, 3, 18, 1, 128], None),
    ([1, 17, 2, 1, 256], own(false, false, false)),
];

/// Everything that goes in, and what comes out, of one shape.
struct Case {
    what: String,
    sizes: Sizes,
    dtype: DType,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    grad: Vec<f64>,
    mask: Option<(Vec<f64>, [usize; 3])>,
}

impl Case {
    fn new(rng: &mut Rng, (shape, own): Shape, dtype: DType) -> Self {
        let [batch, queries, keys, heads, width] = shape;
        let sizes = Sizes {
            batch,
            queries,
            keys,
            heads,
            width,
        };
        let row = heads * width;
        let [q, grad] = [(); 2].map(|()| draw(rng, batch * queries * row, dtype));
        let [k, v] = [(); 2].map(|()| draw(rng, batch * keys * row, dtype));
        let mask = own.map(|own| {
            let dims = (
                if own.samples { batch } else { 1 },
                if own.heads { heads } else { 1 },
                if own.queries { queries } else { 1 },
                keys,
            );
            let mut mask = draw(rng, dims.0 * dims.1 * dims.2 * keys, DType::F32);
            // Some keys are hidden; from the last query of a mask of its own, all.
            mask.iter_mut().skip(1).step_by(3).for_each(|x| *x = f64::NEG_INFINITY);
            mask.iter_mut().skip(2).step_by(5).for_each(|x| *x = -30_000.0);
            if own.queries {
                mask.iter_mut().rev().take(keys).for_each(|x| *x = f64::NEG_INFINITY);
            }
            (mask, mask_strides(dims))
        });
        Self {
            what: format!("{shape:?} {dtype:?}, mask {own:?}"),
            sizes,
            dtype,
            q,
            k,
            v,
            grad,
            mask,
        }
    }

    /// Features of a token of a head, of q or what is like it.
    fn head<'a>(&self, x: &'a [f64], tokens: usize, (sample, head): (usize, usize), token: usize) -> &'a [f64] {
        let Sizes { heads, width, .. } = self.sizes;
        &x[((sample * tokens + token) * heads + head) * width..][..width]
    }

    /// A score; its size is by how much it may be off in roundings.
    fn score(&self, at: (usize, usize), query: usize, key: usize) -> Exact {
        let Sizes { queries, keys, .. } = self.sizes;
        let (q, k) = (
            self.head(&self.q, queries, at, query),
            self.head(&self.k, keys, at, key),
        );
        let scale = f64::from((self.sizes.width as f32).powf(-0.5));
        let mut terms: Vec<f64> = q.iter().zip(k).map(|(q, k)| scale * q * k).collect();
        if let Some((mask, [samples, heads, queries])) = &self.mask {
            terms.push(mask[at.0 * samples + at.1 * heads + query * queries + key]);
        }
        Exact::sum(terms)
    }

    /// The weights of one query, and the logarithm of their sum. A weight is off by what its score is.
    fn weights(&self, at: (usize, usize), query: usize) -> (Vec<Exact>, f64) {
        let scores: Vec<Exact> = (0..self.sizes.keys).map(|key| self.score(at, query, key)).collect();
        let largest = scores
            .iter()
            .fold(f64::NEG_INFINITY, |most, score| most.max(score.value));
        if largest == f64::NEG_INFINITY {
            return (vec![Exact::default(); scores.len()], f64::INFINITY);
        }
        let sum: f64 = scores.iter().map(|score| (score.value - largest).exp()).sum();
        let log_sum = largest + sum.ln();
        // Of the others, too: they are in the sum.
        let worst = scores.iter().filter(|score| score.value > largest - 30.0);
        let worst = worst.fold(0f64, |most, score| most.max(score.size));
        let weight = |score: &Exact| {
            let weight = (score.value - log_sum).exp();
            Exact::new(weight, weight * (1.0 + worst))
        };
        (scores.iter().map(weight).collect(), log_sum)
    }

    fn heads(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let heads = self.sizes.heads;
        (0..self.sizes.batch).flat_map(move |sample| (0..heads).map(move |head| (sample, head)))
    }

    /// Adds `factor * x` to the row of a token.
    fn add(
        &self,
        to: &mut [Exact],
        tokens: usize,
        (sample, head): (usize, usize),
        token: usize,
        factor: Exact,
        x: &[f64],
    ) {
        let Sizes { heads, width, .. } = self.sizes;
        let start = ((sample * tokens + token) * heads + head) * width;
        for (to, x) in to[start..].iter_mut().zip(x) {
            *to = Exact::new(to.value + factor.value * x, to.size + factor.size * x.abs());
        }
    }

    /// The output, and the log-sum-exp.
    fn forward(&self) -> (Vec<Exact>, Vec<Exact>) {
        let Sizes { queries, keys, .. } = self.sizes;
        let (mut out, mut log_sums) = (vec![Exact::default(); self.q.len()], Vec::new());
        for at in self.heads() {
            for query in 0..queries {
                let (weights, log_sum) = self.weights(at, query);
                let worst = weights
                    .iter()
                    .fold(0f64, |most, weight| most.max(weight.size / weight.value.max(1e-300)));
                log_sums.push(Exact::new(log_sum, log_sum.abs() + worst));
                for (key, weight) in weights.into_iter().enumerate() {
                    self.add(&mut out, queries, at, query, weight, self.head(&self.v, keys, at, key));
                }
            }
        }
        (out, log_sums)
    }

    /// sum(do o) of each query, for an output that was stored.
    fn along(&self, out: &[f64]) -> Vec<Exact> {
        let queries = self.sizes.queries;
        let mut sums = Vec::new();
        for at in self.heads() {
            for query in 0..queries {
                let (out, grad) = (
                    self.head(out, queries, at, query),
                    self.head(&self.grad, queries, at, query),
                );
                sums.push(Exact::sum(out.iter().zip(grad).map(|(out, grad)| out * grad)));
            }
        }
        sums
    }

    /// The gradients of q, k and v, for sums (B, H, S) that were stored.
    fn back(&self, sums: &[f64]) -> [Vec<Exact>; 3] {
        let Sizes {
            queries,
            keys,
            heads,
            width,
            ..
        } = self.sizes;
        let scale = f64::from((width as f32).powf(-0.5));
        let none = |like: &[f64]| vec![Exact::default(); like.len()];
        let (mut dq, mut dk, mut dv) = (none(&self.q), none(&self.k), none(&self.v));
        for at in self.heads() {
            for query in 0..queries {
                let (weights, log_sum) = self.weights(at, query);
                let grad = self.head(&self.grad, queries, at, query);
                let q = self.head(&self.q, queries, at, query);
                let sum = sums[(at.0 * heads + at.1) * queries + query];
                for (key, weight) in weights.into_iter().enumerate() {
                    if weight.value == 0.0 {
                        continue;
                    }
                    let (k, v) = (self.head(&self.k, keys, at, key), self.head(&self.v, keys, at, key));
                    // The logarithm was rounded when it was stored.
                    let weight = Exact::new(weight.value, weight.size + weight.value * log_sum.abs());
                    let towards = Exact::sum(grad.iter().zip(v).map(|(grad, v)| grad * v).chain([-sum]));
                    let slope = Exact::new(scale * weight.value * towards.value, scale * weight.size * towards.size);
                    self.add(&mut dq, queries, at, query, slope, k);
                    self.add(&mut dk, keys, at, key, slope, q);
                    self.add(&mut dv, keys, at, key, weight, grad);
                }
            }
        }
        [dq, dk, dv]
    }

    fn tiled(&self, mask: &Option<Lent>) -> Tiled {
        Tiled {
            sizes: self.sizes,
            mask: Masked {
                at: mask.as_ref().map_or(0, Lent::at),
                strides: self.mask.as_ref().map_or([0; 3], |(_, strides)| *strides),
            },
            dtype: self.dtype,
        }
    }

    /// q, k, v and the mask of a run.
    fn lent(&self, run: &Run) -> ([Lent; 3], Option<Lent>) {
        let all = [&self.q, &self.k, &self.v].map(|x| run.given(x, self.dtype));
        (all, self.mask.as_ref().map(|(mask, _)| run.given(mask, DType::F32)))
    }

    /// Returns the saved state of the forward pass: the output and the log-sum-exp.
    fn left(&self) -> (Vec<f64>, Vec<f64>) {
        let (out, log_sums) = self.forward();
        let of = |all: Vec<Exact>, dtype| all.iter().map(|x| rounded(x.value, dtype)).collect();
        (of(out, self.dtype), of(log_sums, DType::F32))
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let mut rng = Rng::new(1);
    let all = SHAPES.into_iter().flat_map(|shape| BOTH.map(|dtype| (shape, dtype)));
    all.map(move |(shape, dtype)| Case::new(&mut rng, shape, dtype))
}

fn read([q, k, v]: &[Lent; 3]) -> Read {
    Read {
        q: q.at(),
        k: k.at(),
        v: v.at(),
    }
}

pub fn forward(card: &Card) {
    for case in cases() {
        let (expected, expected_sums) = case.forward();
        card.each_way(
            &case.what,
            |run| {
                let (all, mask) = case.lent(run);
                let (out, log_sums) = (
                    run.room(case.q.len(), case.dtype),
                    run.room(expected_sums.len(), DType::F32),
                );
                let launch = case.tiled(&mask).forward(read(&all), [out.at(), log_sums.at()]);
                run.launch(launch);
                [out.numbers(), log_sums.numbers()]
            },
            |[out, log_sums]| {
                assert_exact(&format!("out: {}", case.what), &out, &expected, case.dtype, 2.0);
                let what = format!("log-sum-exp: {}", case.what);
                assert_exact(&what, &log_sums, &expected_sums, DType::F32, 3.0);
            },
        );
    }
}

/// The three launches of the backward pass, of which the last two read the first one's output.
pub fn back(card: &Card) {
    for case in cases() {
        let (out, log_sums) = case.left();
        let expected_sums = case.along(&out);
        let stored: Vec<f64> = expected_sums.iter().map(|sum| sum.value).collect();
        let expected = case.back(&stored);
        card.each_way(
            &case.what,
            |run| {
                let (all, mask) = case.lent(run);
                let [out, grad] = [&out, &case.grad].map(|x| run.given(x, case.dtype));
                let log_sums = run.given(&log_sums, DType::F32);
                let also = ReadBack {
                    out: out.at(),
                    log_sums: log_sums.at(),
                    grad: grad.at(),
                };
                let sums = run.room(stored.len(), DType::F32);
                let [dq, dk, dv] = [&case.q, &case.k, &case.v].map(|x| run.room(x.len(), case.dtype));
                let tiled = case.tiled(&mask);
                run.launch(tiled.along(also, sums.at()));
                run.launch(tiled.back_queries(read(&all), also, sums.at(), dq.at()));
                run.launch(tiled.back_keys(read(&all), also, sums.at(), [dk.at(), dv.at()]));
                [&sums, &dq, &dk, &dv].map(Lent::numbers)
            },
            |[sums, dq, dk, dv]| {
                let what = |name: &str| format!("{name}: {}", case.what);
                assert_exact(&what("do o"), &sums, &expected_sums, DType::F32, 4.0);
                for (name, (found, expected)) in ["dq", "dk", "dv"].iter().zip([dq, dk, dv].iter().zip(&expected)) {
                    assert_exact(&what(name), found, expected, case.dtype, 2.0);
                }
            },
        );
    }
}

/// cuDNN's result, a mean of values and a finite log-sum-exp, becomes that of the tiled forward pass.
pub fn blind(card: &Card) {
    for case in cases() {
        let Some((mask, _)) = &case.mask else { continue };
        let (expected, expected_sums) = case.left();
        let seeing: Vec<f64> = mask
            .chunks_exact(case.sizes.keys)
            .map(|row| f64::from(u8::from(row.iter().any(|x| *x > f64::NEG_INFINITY))))
            .collect();
        // Queries without any key get another value.
        let unseeing: Vec<bool> = expected_sums.iter().map(|sum| *sum == f64::INFINITY).collect();
        let sums: Vec<f64> = expected_sums
            .iter()
            .map(|sum| if sum.is_finite() { *sum } else { 2.5 })
            .collect();
        let Sizes {
            queries, heads, width, ..
        } = case.sizes;
        let mut out = expected.clone();
        for (i, out) in out.iter_mut().enumerate() {
            let (token, head) = (i / width / heads, i / width % heads);
            if unseeing[(token / queries * heads + head) * queries + token % queries] {
                *out = 1.5;
            }
        }
        card.each_way(
            &case.what,
            |run| {
                let (out, sums) = (run.changed(&out, case.dtype), run.changed(&sums, DType::F32));
                let seeing = run.given(&seeing, DType::F32);
                let launch = case.tiled(&None).blind(seeing.at(), [out.at(), sums.at()]);
                run.launch(launch);
                [out.numbers(), sums.numbers()]
            },
            |[out, sums]| assert!(out == expected && sums == expected_sums, "{}", case.what),
        );
    }
}
