//! dropout.cu against the masks of the CPU, bit for bit.

use candle_core::DType;
use vtrain::ops::dropout::Mask;
use vtrain::rng::Rng;

use super::card::Card;
use super::exact::{BOTH, Exact, assert_exact, draw};

/// Counts with and without a tail behind packs of 16 bytes, less and more than a block.
const COUNTS: [usize; 6] = [1, 7, 8, 255, 1003, 2056];

fn masks() -> [Mask; 4] {
    [
        Mask::new(0.3, 9, 0),
        Mask::new(0.5, (1 << 63) + 5, 41),
        Mask::new(0.999, u64::MAX, u64::MAX),
        Mask::new(0.0, 0, 0),
    ]
}

fn cases() -> impl Iterator<Item = (Mask, DType, usize)> {
    let types = masks().into_iter().flat_map(|mask| BOTH.map(|dtype| (mask, dtype)));
    types.flat_map(|(mask, dtype)| COUNTS.map(|count| (mask, dtype, count)))
}

/// x times 0 or 1, which is exact.
fn expected(mask: &Mask, x: &[f64]) -> Vec<Exact> {
    let kept = |(i, x): (usize, &f64)| Exact::new(if mask.keeps(i as u64) { *x } else { 0.0 }, 0.0);
    x.iter().enumerate().map(kept).collect()
}

/// From one buffer to another, in as many blocks as the launch has and in one.
pub fn masked(card: &Card) {
    let mut rng = Rng::new(1);
    for (mask, dtype, count) in cases() {
        let what = format!("{mask:?} of {count} {dtype:?}");
        let x = draw(&mut rng, count, dtype);
        for blocks in [None, Some([1, 1, 1])] {
            card.each_way(
                &what,
                |run| {
                    let (x, y) = (run.given(&x, dtype), run.room(count, dtype));
                    let mut launch = mask.launch(x.at(), y.at(), count, dtype).unwrap();
                    launch.grid.blocks = blocks.unwrap_or(launch.grid.blocks);
                    run.launch(Ok(launch));
                    [y.numbers()]
                },
                |[y]| assert_exact(&what, &y, &expected(&mask, &x), dtype, 0.0),
            );
        }
    }
}

/// Address of the numbers.
pub fn in_place(card: &Card) {
    let mut rng = Rng::new(2);
    for (mask, dtype, count) in cases() {
        let what = format!("{mask:?} of {count} {dtype:?} in place");
        let x = draw(&mut rng, count, dtype);
        card.each_way(
            &what,
            |run| {
                let x = run.changed(&x, dtype);
                run.launch(mask.launch(x.at(), x.at(), count, dtype));
                [x.numbers()]
            },
            |[x_after]| assert_exact(&what, &x_after, &expected(&mask, &x), dtype, 0.0),
        );
    }
}
