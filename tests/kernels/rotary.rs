//! rotary.cu against rotations in f64.

use candle_core::DType;
use vtrain::ops::rotary::PairLayout;
use vtrain::ops::rotary::launch::{Direction, Sizes, rotary};
use vtrain::rng::Rng;

use super::card::Card;
use super::exact::{BOTH, Exact, assert_exact, draw};

/// x (B, S, H, K), and its tables (samples of their own or 1, S - first, pairs).
#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    tokens: usize,
    heads: usize,
    width: usize,
    first: usize,
    /// True if each sample has its own tables.
    own: bool,
    /// True if each head has its own angles: with neighbouring pairs.
    by_head: bool,
}

const CASES: [Case; 9] = [
    Case::new([1, 1, 1, 2], 0, false, false),
    Case::new([2, 5, 3, 6], 2, false, false),
    Case::new([2, 7, 2, 64], 3, true, false),
    Case::new([2, 3, 2, 24], 1, true, false),
    Case::new([2, 5, 3, 48], 2, false, false),
    Case::new([2, 3, 2, 32], 1, true, true),
    Case::new([3, 4, 3, 10], 0, false, true),
    Case::new([2, 3, 2, 8], 1, true, true),
    Case::new([2, 2, 1, 4], 2, false, false), // nothing turns
];

impl Case {
    const fn new([batch, tokens, heads, width]: [usize; 4], first: usize, own: bool, by_head: bool) -> Self {
        Self {
            batch,
            tokens,
            heads,
            width,
            first,
            own,
            by_head,
        }
    }

    fn table_rows(&self) -> usize {
        (if self.own { self.batch } else { 1 }) * (self.tokens - self.first)
    }

    fn table_pairs(&self) -> usize {
        (if self.by_head { self.heads } else { 1 }) * self.width / 2
    }

    /// Returns the positions of a pair's two numbers among those of a head.
    fn pair(&self, pairs: PairLayout, pair: usize) -> (usize, usize) {
        match pairs {
            PairLayout::Neighbours => (2 * pair, 2 * pair + 1),
            PairLayout::Halves => (pair, pair + self.width / 2),
            PairLayout::HalvesOf(parts) => {
                let half = self.width / parts / 2;
                let first = pair / half * 2 * half + pair % half;
                (first, first + half)
            }
        }
    }

    /// y, for x and cos and sin.
    fn exact(&self, direction: Direction, x: &[f64], [cos, sin]: [&[f64]; 2]) -> Vec<Exact> {
        let mut y: Vec<Exact> = x.iter().map(|x| Exact::new(*x, 0.0)).collect();
        let half = self.width / 2;
        for (row, y) in y.chunks_mut(self.heads * self.width).enumerate() {
            let (sample, token) = (row / self.tokens, row % self.tokens);
            if token < self.first {
                continue;
            }
            let row = if self.own {
                sample * (self.tokens - self.first)
            } else {
                0
            } + token
                - self.first;
            for (head, y) in y.chunks_mut(self.width).enumerate() {
                for pair in 0..half {
                    let at = row * self.table_pairs() + if self.by_head { head * half } else { 0 } + pair;
                    let (c, s) = (cos[at], sin[at] * f64::from(direction.sign));
                    let (one, other) = self.pair(direction.pairs, pair);
                    let (a, b) = (y[one].value, y[other].value);
                    y[one] = Exact::sum([a * c, -b * s]);
                    y[other] = Exact::sum([b * c, a * s]);
                }
            }
        }
        y
    }
}

/// All pair layouts, forward and backward; with all blocks, and with one whose threads loop over more.
fn ways(case: Case) -> impl Iterator<Item = (Direction, Option<usize>)> {
    let pairs = [PairLayout::Neighbours, PairLayout::Halves, PairLayout::HalvesOf(3)]
        .into_iter()
        .filter(move |pairs| match pairs {
            PairLayout::Neighbours => true,
            PairLayout::Halves => !case.by_head,
            PairLayout::HalvesOf(parts) => !case.by_head && case.width.is_multiple_of(2 * parts),
        });
    pairs.flat_map(move |pairs| {
        [(1.0, None), (-1.0, Some(1))].map(|(sign, blocks)| {
            let first = case.first;
            (Direction { pairs, first, sign }, blocks)
        })
    })
}

pub fn turn(card: &Card) {
    let mut rng = Rng::new(1);
    for (case, dtype) in CASES.into_iter().flat_map(|case| BOTH.map(|dtype| (case, dtype))) {
        let sizes = Sizes {
            batch: case.batch,
            tokens: case.tokens,
            heads: case.heads,
            width: case.width,
            table_rows: case.table_rows(),
            table_pairs: case.table_pairs(),
        };
        let x = draw(&mut rng, case.batch * case.tokens * case.heads * case.width, dtype);
        let tables = [(); 2].map(|()| draw(&mut rng, case.table_rows() * case.table_pairs(), DType::F32));
        for (direction, blocks) in ways(case) {
            let what = format!("{direction:?} of {case:?} {dtype:?}, blocks {blocks:?}");
            let expected = case.exact(direction, &x, [&tables[0], &tables[1]]);
            card.each_way(
                &what,
                |run| {
                    let (x, y) = (run.given(&x, dtype), run.room(x.len(), dtype));
                    let [cos, sin] = [&tables[0], &tables[1]].map(|table| run.given(table, DType::F32));
                    let mut launch = rotary(sizes, direction, x.at(), [cos.at(), sin.at()], y.at(), dtype).unwrap();
                    launch.grid.blocks[0] = blocks.unwrap_or(launch.grid.blocks[0]);
                    run.launch(Ok(launch));
                    [y.numbers()]
                },
                |[y]| assert_exact(&what, &y, &expected, dtype, 2.0),
            );
        }
    }
}
