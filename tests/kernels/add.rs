//! Residuals without a gate, of residual.cu, against sums in f64.

use vtrain::ops::add::launch;
use vtrain::rng::Rng;

use super::card::Card;
use super::exact::{BOTH, Exact, assert_exact, draw};

/// Counts with and without a tail behind packs of 16 bytes, less and more than a block.
const COUNTS: [usize; 6] = [1, 7, 8, 255, 1003, 2056];

pub fn forward(card: &Card) {
    let mut rng = Rng::new(1);
    for (count, dtype) in COUNTS.into_iter().flat_map(|count| BOTH.map(|dtype| (count, dtype))) {
        let what = format!("a sum of {count} {dtype:?}");
        let [a, b] = [(); 2].map(|()| draw(&mut rng, count, dtype));
        let expected: Vec<Exact> = a.iter().zip(&b).map(|(a, b)| Exact::sum([*a, *b])).collect();
        for blocks in [None, Some([1, 1, 1])] {
            card.each_way(
                &what,
                |run| {
                    let [a, b] = [&a, &b].map(|numbers| run.given(numbers, dtype));
                    let y = run.room(count, dtype);
                    let mut launch = launch::forward([a.at(), b.at()], y.at(), count, dtype).unwrap();
                    launch.grid.blocks = blocks.unwrap_or(launch.grid.blocks);
                    run.launch(Ok(launch));
                    [y.numbers()]
                },
                |[y]| assert_exact(&what, &y, &expected, dtype, 1.0),
            );
        }
    }
}
