//! update.cu against AdamW, with moments in f32 and in 8 bits, and sums of squares in f64.

use candle_core::DType;
use vtrain::optim::adamw::Config;
use vtrain::optim::dynamic_map::{BLOCK, DynamicMap};
use vtrain::optim::launch::{PIECE, Table};
use vtrain::rng::Rng;

use super::card::{Card, Lent, Run};
use super::exact::{Exact, assert_exact, draw};

/// Tensors of less than a piece, of a piece, of more, and of nothing, in the midst and at the end.
const LENGTHS: [usize; 8] = [1, 0, 5, PIECE, PIECE + 1, 300, 2 * PIECE + 77, 0];

/// A table, and its numbers where the kernels read them.
fn placed<const N: usize>(run: &Run, tensors: &[[Lent; N]], lengths: &[usize]) -> (Table, Lent) {
    let rows = lengths.iter().zip(tensors);
    let rows: Vec<(usize, [u64; N])> = rows
        .map(|(length, tensors)| (*length, std::array::from_fn(|at| tensors[at].at())))
        .collect();
    let table = Table::new(&rows);
    let numbers: Vec<f64> = table.numbers.iter().map(|number| *number as f64).collect();
    let at = run.own(&numbers, DType::I64);
    (table, at)
}

/// Expected update of parameter, gradient and both moments by AdamW.
struct Step<'a> {
    config: &'a Config,
    /// Counted from 1.
    step: f64,
    scale: f64,
    lr: f64,
}

impl Step<'_> {
    fn exact(&self, [p, g, m, v]: [f64; 4]) -> [Exact; 3] {
        let Config {
            beta1, beta2, epsilon, ..
        } = *self.config;
        let g = g * self.scale;
        let mean = Exact::new(m + (1.0 - beta1) * (g - m), m.abs() + g.abs());
        let square = Exact::sum([beta2 * v, (1.0 - beta2) * g * g]);
        let root = (square.value / (1.0 - beta2.powf(self.step))).sqrt() + epsilon;
        let moved = self.lr / (1.0 - beta1.powf(self.step)) / root;
        let decayed = (1.0 - self.lr * self.config.weight_decay) * p;
        let next = Exact::new(decayed - moved * mean.value, p.abs() + 4.0 * moved * mean.size);
        [next, mean, square]
    }
}

pub fn adamw(card: &Card) {
    let mut rng = Rng::new(1);
    let config = Config {
        weight_decay: 0.03,
        ..Config::default()
    };
    let tensors = LENGTHS.map(|length| {
        let mut all = [(); 4].map(|()| draw(&mut rng, length, DType::F32));
        all[3].iter_mut().for_each(|v| *v = v.abs()); // a mean of squares
        all
    });
    for (step, scale) in [(1, 1.0), (1000, 0.37)] {
        let what = format!("step {step} of AdamW");
        let exact = Step {
            config: &config,
            step: f64::from(step),
            scale,
            lr: 1e-2,
        };
        let mut expected = [(); 3].map(|()| Vec::new());
        for [p, g, m, v] in &tensors {
            for at in 0..p.len() {
                let found = exact.exact([p[at], g[at], m[at], v[at]]);
                expected.iter_mut().zip(found).for_each(|(all, found)| all.push(found));
            }
        }
        let update = config.update(step as usize, scale, exact.lr);
        card.each_way(
            &what,
            |run| {
                let lent = tensors.each_ref().map(|[p, g, m, v]| {
                    let [p, m, v] = [p, m, v].map(|numbers| run.changed(numbers, DType::F32));
                    [p, run.given(g, DType::F32), m, v]
                });
                let (table, at) = placed(run, &lent, &LENGTHS);
                run.launch(Ok(table.adamw(at.at(), update)));
                [0, 2, 3].map(|kind| lent.iter().flat_map(|tensors| tensors[kind].numbers()).collect())
            },
            |found: [Vec<f64>; 3]| {
                for ((name, found), expected) in ["parameters", "means", "squares"].iter().zip(&found).zip(&expected) {
                    assert_exact(&format!("{name}: {what}"), found, expected, DType::F32, 4.0);
                }
            },
        );
    }
}

/// A variable with moments in 8 bits: parameters, gradient, codes and largest magnitudes of both moments.
fn in_8_bits(rng: &mut Rng, length: usize) -> [Vec<f64>; 6] {
    let [p, mut g] = [(); 2].map(|()| draw(rng, length, DType::F32));
    let mut codes = || {
        rng.randint(0, 256, length)
            .into_iter()
            .map(|code| code as f64)
            .collect()
    };
    let (m, v) = (codes(), codes());
    let blocks = length.div_ceil(BLOCK);
    let mut largest = || {
        draw(rng, blocks, DType::F32)
            .into_iter()
            .map(f64::abs)
            .collect::<Vec<_>>()
    };
    let (mut of_m, mut of_v) = (largest(), largest());
    // A block that nothing has moved yet.
    if blocks > 2 {
        g[BLOCK..2 * BLOCK].fill(0.0);
        (of_m[1], of_v[1]) = (0.0, 0.0);
    }
    [p, g, m, of_m, v, of_v]
}

/// Fails unless all codes are those of nearest values, within some roundings of the largest.
fn assert_nearest(what: &str, map: &DynamicMap, codes: &[f64], largest: &[f64], expected: &[Exact]) {
    for (at, (code, exact)) in codes.iter().zip(expected).enumerate() {
        let largest = largest[at / BLOCK];
        let off = |value: &f32| (f64::from(*value) * largest - exact.value).abs();
        let nearest = map.values().iter().map(off).fold(f64::MAX, f64::min);
        let found = off(&map.values()[*code as usize]);
        let allowed = 1e-6 * largest + 1e-6 * exact.size;
        assert!(
            found <= nearest + allowed,
            "{what}: number {at} has code {code}, off by {found:e}, not {nearest:e}"
        );
    }
}

pub fn adamw8bit(card: &Card) {
    let mut rng = Rng::new(3);
    let config = Config {
        weight_decay: 0.03,
        ..Config::default()
    };
    let (signed, unsigned) = (DynamicMap::signed(), DynamicMap::unsigned());
    let maps: Vec<f64> = [signed, unsigned]
        .iter()
        .flat_map(|map| map.values())
        .map(|x| f64::from(*x))
        .collect();
    let tensors = LENGTHS.map(|length| in_8_bits(&mut rng, length));
    let exact = Step {
        config: &config,
        step: 30.0,
        scale: 0.37,
        lr: 1e-2,
    };
    let expected = tensors.each_ref().map(|[p, g, m, of_m, v, of_v]| {
        let decoded =
            |map: &DynamicMap, code: f64, largest: f64| f64::from(map.values()[code as usize] * largest as f32);
        let one = |at: usize| {
            let block = at / BLOCK;
            let (m, v) = (
                decoded(signed, m[at], of_m[block]),
                decoded(unsigned, v[at], of_v[block]),
            );
            exact.exact([p[at], g[at], m, v])
        };
        (0..p.len()).map(one).collect::<Vec<_>>()
    });
    let update = config.update(30, exact.scale, exact.lr);
    let kinds = [DType::F32, DType::F32, DType::U8, DType::F32, DType::U8, DType::F32];
    card.each_way(
        "AdamW in 8 bits",
        |run| {
            let lent = tensors.each_ref().map(|tensors| {
                let lend = |kind: usize| match kind {
                    1 => run.given(&tensors[1], kinds[1]),
                    _ => run.changed(&tensors[kind], kinds[kind]),
                };
                std::array::from_fn::<Lent, 6, _>(lend)
            });
            let (table, at) = placed(run, &lent, &LENGTHS);
            let maps = run.own(&maps, DType::F32);
            run.launch(Ok(table.adamw8bit(at.at(), update, maps.at())));
            let found = lent
                .iter()
                .flat_map(|tensors| [0, 2, 3, 4, 5].map(|kind| tensors[kind].numbers()));
            found.collect::<Vec<_>>()
        },
        |found: Vec<Vec<f64>>| {
            for (found, expected) in found.chunks(5).zip(&expected) {
                let [p, m, of_m, v, of_v] = found else {
                    panic!("{} kinds", found.len());
                };
                let of = |kind: usize| expected.iter().map(|all| all[kind]).collect::<Vec<Exact>>();
                assert_exact("parameters", p, &of(0), DType::F32, 4.0);
                for (what, map, codes, largest, exact) in
                    [("means", signed, m, of_m, of(1)), ("squares", unsigned, v, of_v, of(2))]
                {
                    let most = |block: &[Exact]| {
                        let size = |exact: &Exact| Exact::new(exact.value.abs(), exact.size);
                        block
                            .iter()
                            .map(size)
                            .fold(Exact::default(), |most, exact| match exact.value > most.value {
                                true => exact,
                                false => most,
                            })
                    };
                    let most: Vec<Exact> = exact.chunks(BLOCK).map(most).collect();
                    assert_exact(&format!("the largest of {what}"), largest, &most, DType::F32, 4.0);
                    assert_nearest(what, map, codes, largest, &exact);
                }
            }
        },
    );
}

pub fn square_sums(card: &Card) {
    let mut rng = Rng::new(2);
    let tensors = LENGTHS.map(|length| [draw(&mut rng, length, DType::F32)]);
    let pieces = tensors.iter().flat_map(|[tensor]| tensor.chunks(PIECE));
    let expected: Vec<f64> = pieces.map(|piece| piece.iter().map(|x| x * x).sum()).collect();
    card.each_way(
        "sums of squares",
        |run| {
            let lent = tensors.each_ref().map(|[tensor]| [run.given(tensor, DType::F32)]);
            let (table, at) = placed(run, &lent, &LENGTHS);
            assert_eq!(table.pieces, expected.len());
            let sums = run.own_room(table.pieces, DType::F64);
            run.launch(Ok(table.square_sums(at.at(), sums.at())));
            [sums.numbers()]
        },
        |[sums]| {
            for (found, expected) in sums.iter().zip(&expected) {
                let off = (found - expected).abs();
                assert!(
                    off <= 1e-12 * expected,
                    "a sum of squares is {found} and not {expected}"
                );
            }
        },
    );
}
