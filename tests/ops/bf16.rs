use half::bf16;
use vtrain::ops::bf16::Isa;
use vtrain::ops::bf16::line::{exact_numbers, nearest_numbers};
use vtrain::ops::bf16::output::{Finish, Number, Output};
use vtrain::ops::bf16::over_rows::{over_rows, over_rows_transposed};
use vtrain::ops::bf16::pack::Rows;
use vtrain::ops::bf16::product::{LeftMatrix, Term};
use vtrain::ops::bf16::right::{Packed, Right};
use vtrain::rng::Rng;

/// Rows, columns, and the inner axes of the terms: squares and edges; several stretches; several tasks of rows.
type Case = (usize, usize, &'static [usize]);
const CASES: [Case; 7] = [
    (1, 1, &[1]),
    (32, 32, &[32]),
    (33, 70, &[64, 8]),
    (5, 40, &[31, 33, 96]),
    (33, 20, &[2700]),
    (200, 20, &[2600, 16]),
    (1100, 20, &[16, 4]),
];

fn draw(rng: &mut Rng, count: usize) -> Vec<bf16> {
    rng.randn(count).into_iter().map(bf16::from_f32).collect()
}

/// A sum of products `a b` and an addend for each column.
struct Sum {
    rows: usize,
    cols: usize,
    depths: Vec<usize>,
    /// (rows, depth) each.
    lefts: Vec<Vec<bf16>>,
    /// (depth, cols) each.
    rights: Vec<Vec<bf16>>,
    bias: Vec<f32>,
}

/// How the right matrices are given.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Plain,
    Transposed,
    Packed,
}

impl Sum {
    fn new((rows, cols, depths): Case) -> Self {
        let mut rng = Rng::new(11);
        Self {
            rows,
            cols,
            depths: depths.to_vec(),
            lefts: depths.iter().map(|depth| draw(&mut rng, rows * depth)).collect(),
            rights: depths.iter().map(|depth| draw(&mut rng, depth * cols)).collect(),
            bias: rng.randn(cols),
        }
    }

    /// Rows `first..` of the sum, as many as `count`.
    fn part<T: Number>(&self, isa: Isa, way: Way, first: usize, count: usize) -> Vec<T> {
        let transposed = |(depth, right): (&usize, &Vec<bf16>)| -> Vec<bf16> {
            let numbers = (0..self.cols).flat_map(|j| (0..*depth).map(move |k| right[k * self.cols + j]));
            numbers.collect()
        };
        let packed = |(depth, right): (&usize, &Vec<bf16>)| {
            let mut packed = Packed::zeros(self.cols, *depth);
            let rows = Rows::new(right, *depth, self.cols);
            for first in (0..*depth).step_by(64) {
                packed.put(first, rows.part(first, 64.min(depth - first)));
            }
            packed
        };
        let rights = || self.depths.iter().zip(&self.rights);
        let transposed: Vec<_> = rights().map(transposed).collect();
        let packed: Vec<_> = rights().map(packed).collect();
        let term = |(i, depth): (usize, &usize)| Term {
            left: LeftMatrix::Rows(Rows::new(&self.lefts[i], self.rows, *depth).part(first, count)),
            right: match way {
                Way::Plain => Right::Plain(Rows::new(&self.rights[i], *depth, self.cols)),
                Way::Transposed => Right::Transposed(Rows::new(&transposed[i], self.cols, *depth)),
                Way::Packed => Right::Packed(&packed[i]),
            },
        };
        let terms: Vec<Term> = self.depths.iter().enumerate().map(term).collect();
        let mut output = Output::new(count, self.cols);
        let bias = Some(&self.bias[..]);
        output.compute(isa, &terms, Finish { bias, ..Finish::NONE });
        output.into_numbers()
    }

    fn whole(&self, isa: Isa, way: Way) -> Vec<f32> {
        self.part(isa, way, 0, self.rows)
    }

    /// Each sum in f64, and the sum of the sizes of all that is added.
    fn in_f64(&self) -> Vec<(f64, f64)> {
        let number = |i: usize, j: usize| {
            let mut sums = (f64::from(self.bias[j]), f64::from(self.bias[j].abs()));
            for ((depth, left), right) in self.depths.iter().zip(&self.lefts).zip(&self.rights) {
                for k in 0..*depth {
                    let product = left[i * depth + k].to_f64() * right[k * self.cols + j].to_f64();
                    sums = (sums.0 + product, sums.1 + product.abs());
                }
            }
            sums
        };
        (0..self.rows * self.cols)
            .map(|at| number(at / self.cols, at % self.cols))
            .collect()
    }
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

#[test]
fn products_are_the_sums_in_f64() {
    for case in CASES {
        let sum = Sum::new(case);
        let expected = sum.in_f64();
        for isa in Isa::available() {
            let found = sum.whole(isa, Way::Plain);
            for (at, (found, (exact, size))) in found.iter().zip(&expected).enumerate() {
                let off = (f64::from(*found) - exact).abs() / size;
                assert!(
                    off < 1e-6,
                    "{isa:?} {case:?}: number {at} is off by {off:.1e} of what was added"
                );
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
#[ignore = "needs amx: the processor has tiles for bf16"]
fn tiles_compute_what_their_emulation_does_to_the_bit() {
    assert!(Isa::available().contains(&Isa::Amx));
    for case in CASES {
        let sum = Sum::new(case);
        let [tiles, emulated] = [Isa::Amx, Isa::Emulated].map(|isa| bits(&sum.whole(isa, Way::Plain)));
        assert!(tiles == emulated, "{case:?}");
    }
}

#[test]
fn a_right_matrix_may_lie_in_rows_in_columns_or_in_lines() {
    for isa in Isa::available() {
        // Several strips where that does not take long.
        let large = (isa != Isa::Emulated).then_some((230, 900, &[2600][..]));
        for case in CASES.into_iter().chain(large) {
            let sum = Sum::new(case);
            let [plain, transposed, packed] =
                [Way::Plain, Way::Transposed, Way::Packed].map(|way| bits(&sum.whole(isa, way)));
            assert!(plain == transposed && plain == packed, "{isa:?} {case:?}");
        }
    }
}

#[test]
fn a_row_depends_on_its_row_alone() {
    for isa in Isa::available() {
        let sum = Sum::new((70, 20, &[2600, 16]));
        let whole = bits(&sum.whole(isa, Way::Transposed));
        for cuts in [&[0, 1, 70][..], &[0, 31, 33, 70]] {
            let parts = cuts.windows(2).flat_map(|cut| {
                let part: Vec<f32> = sum.part(isa, Way::Transposed, cut[0], cut[1] - cut[0]);
                bits(&part)
            });
            assert!(whole == parts.collect::<Vec<u32>>(), "{isa:?} {cuts:?}");
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for isa in Isa::available() {
        for case in [CASES[4], CASES[5], CASES[6]] {
            let sum = Sum::new(case);
            let by = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| bits(&sum.whole(isa, Way::Plain)))
            };
            let one = by(1);
            assert!(one == by(2) && one == by(5), "{isa:?} {case:?}");
        }
    }
}

#[test]
fn outputs_in_bf16_are_those_in_f32_rounded_once() {
    for isa in Isa::available() {
        let sum = Sum::new(CASES[2]);
        let wide = sum.whole(isa, Way::Plain);
        let found: Vec<bf16> = sum.part(isa, Way::Plain, 0, sum.rows);
        assert!(
            found
                .iter()
                .zip(&wide)
                .all(|(found, wide)| *found == bf16::from_f32(*wide))
        );
    }
}

#[test]
fn a_factor_and_a_matrix_join_the_sums() {
    let (rows, cols, depth) = (33, 35, 40);
    let mut rng = Rng::new(4);
    let (a, b, onto) = (
        draw(&mut rng, rows * depth),
        draw(&mut rng, depth * cols),
        rng.randn(rows * cols),
    );
    let term = Term {
        left: LeftMatrix::Rows(Rows::new(&a, rows, depth)),
        right: Right::Plain(Rows::new(&b, depth, cols)),
    };
    for isa in Isa::available() {
        let compute = |finish: Finish| -> Vec<f32> {
            let mut output = Output::new(rows, cols);
            output.compute(isa, &[term], finish);
            output.into_numbers()
        };
        let plain = compute(Finish::NONE);
        let found = compute(Finish {
            factor: 0.3,
            bias: None,
            onto: Some(&onto),
        });
        for ((found, plain), onto) in found.iter().zip(&plain).zip(&onto) {
            assert_eq!(*found, plain * 0.3 + onto, "{isa:?}");
        }
    }
}

#[test]
fn sums_over_rows_are_added_in_blocks() {
    // Two blocks, of 2048 and 2152.
    let (rows, a_cols, b_cols) = (4200, 5, 18);
    let mut rng = Rng::new(5);
    let (a, b) = (draw(&mut rng, rows * a_cols), draw(&mut rng, rows * b_cols));
    let (a, b) = (Rows::new(&a, rows, a_cols), Rows::new(&b, rows, b_cols));
    for isa in Isa::available() {
        let found = over_rows(isa, 0.7, a, b);
        let [first, second] = [(0, 2048), (2048, 2152)]
            .map(|(from, count)| over_rows(isa, 0.7, a.part(from, count), b.part(from, count)));
        let added: Vec<f32> = first
            .iter()
            .zip(&second)
            .map(|(first, second)| first + second)
            .collect();
        assert!(bits(&found) == bits(&added), "{isa:?}");
        let turned = over_rows_transposed(isa, 0.7, a, b);
        assert!((0..a_cols * b_cols).all(|at| turned[at % b_cols * a_cols + at / b_cols] == found[at]));
    }
}

#[test]
fn numbers_are_rounded_to_the_nearest_and_ties_to_even() {
    let special = [
        0.0,
        -0.0,
        1e-40,
        -1e-45,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    let ties = (0..64u32).map(|i| f32::from_bits(0x3f80_0000 + (i << 14)));
    let wide: Vec<f32> = Rng::new(1).randn(1000).into_iter().chain(special).chain(ties).collect();
    let mut found = vec![bf16::ZERO; wide.len()];
    nearest_numbers(&wide, &mut found);
    for (wide, found) in wide.iter().zip(&found) {
        assert_eq!(found.to_bits(), bf16::from_f32(*wide).to_bits(), "{wide:e}");
    }
    let mut again = vec![0.0; found.len()];
    exact_numbers(&found, &mut again);
    assert!(
        found
            .iter()
            .zip(&again)
            .all(|(found, again)| found.to_f32().to_bits() == again.to_bits())
    );
}
