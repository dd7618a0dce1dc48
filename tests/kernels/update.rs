//! update.cu against AdamW and sums of squares in f64.

use candle_core::DType;
use vtrain::optim::adamw::Config;
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
