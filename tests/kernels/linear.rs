//! linear.cu against sums in f64.

use vtrain::ops::linear::launch;
use vtrain::rng::Rng;

use super::card::Card;
use super::exact::{BOTH, Exact, assert_exact, draw};

pub fn bias(card: &Card) {
    let mut rng = Rng::new(1);
    for dtype in BOTH {
        for (rows, columns, blocks) in [(1, 1, None), (3, 7, None), (5, 130, None), (11, 96, Some(2))] {
            let what = format!("{rows} x {columns} {dtype:?}, blocks {blocks:?}");
            let (y, bias) = (draw(&mut rng, rows * columns, dtype), draw(&mut rng, columns, dtype));
            let sums = y.iter().enumerate().map(|(i, y)| Exact::sum([*y, bias[i % columns]]));
            let expected: Vec<Exact> = sums.collect();
            card.each_way(
                &what,
                |run| {
                    let (y, bias) = (run.changed(&y, dtype), run.given(&bias, dtype));
                    let mut launch = launch::bias(y.at(), bias.at(), [rows, columns], dtype).unwrap();
                    // Fewer blocks than numbers: threads loop over more.
                    launch.grid.blocks[0] = blocks.unwrap_or(launch.grid.blocks[0]);
                    run.launch(Ok(launch));
                    [y.numbers()]
                },
                |[y]| assert_exact(&what, &y, &expected, dtype, 1.0),
            );
        }
    }
}
