//! modulate.cu against its definition in f64.

use candle_core::DType;
use vtrain::ops::modulate::launch::{Read, Sizes, forward};
use vtrain::ops::modulate::table_frame;
use vtrain::rng::Rng;

use super::card::Card;
use super::exact::{BOTH, Exact, assert_exact, draw, rounded};

/// Sizes of x (B, F, H, W, C) and of the tables (frames, rows, columns); an eps, where there is an RMS norm.
type Case = ([usize; 5], [usize; 3], Option<f64>);

/// Whole packs and not, more channels than a warp has lanes, odd and even frames, tables as fine as x and coarser.
const CASES: [Case; 7] = [
    ([1, 1, 1, 1, 1], [1, 1, 1], None),
    ([2, 1, 3, 3, 8], [1, 1, 1], Some(1e-8)),
    ([2, 3, 4, 6, 17], [2, 2, 3], None),
    ([1, 5, 4, 2, 72], [3, 4, 2], Some(1e-6)),
    ([1, 4, 3, 5, 33], [2, 3, 5], None),
    ([3, 2, 5, 7, 40], [1, 1, 1], Some(1e-26)),
    ([1, 1, 9, 1, 300], [1, 3, 1], Some(1e-6)),
];

/// The features' mean, in deviations.
const MEANS: [f64; 2] = [0.0, 5.0];

fn expected(
    ([batch, frames, height, width, channels], table, rms_eps): Case,
    x: &[f64],
    tables: [&[f64]; 2],
) -> Vec<Exact> {
    let mut all = Vec::new();
    for (i, pixel) in x.chunks_exact(channels).enumerate() {
        let (line, w) = (i / width, i % width);
        let (image, h) = (line / height, line % height);
        let (sample, f) = (image / frames, image % frames);
        assert!(sample < batch);
        let row = sample * table[0] + table_frame(f, frames, table[0]);
        let row = (row * table[1] + h * table[1] / height) * table[2] + w * table[2] / width;
        let mean = pixel.iter().map(|x| x * x).sum::<f64>() / channels as f64;
        let r = rms_eps.map_or(1.0, |eps| (mean + f64::from(eps as f32)).sqrt().recip());
        for (c, x) in pixel.iter().enumerate() {
            let [scale, shift] = tables.map(|table| table[row * channels + c]);
            let sum = Exact::sum([x * r * scale, shift]);
            let s = 1.0 / (1.0 + (-sum.value).exp());
            // What the sum is off by counts as the slope says; the exponent's rounding as often as it is large.
            let slope = (s * (1.0 + sum.value * (1.0 - s))).abs();
            let size = slope * sum.size + (sum.value * s).abs() * (1.0 + sum.value.abs());
            all.push(Exact::new(sum.value * s, size));
        }
    }
    all
}

pub fn modulated(card: &Card) {
    let mut rng = Rng::new(1);
    let cases = CASES.into_iter().flat_map(|case| MEANS.map(|mean| (case, mean)));
    for ((case, mean), dtype) in cases.flat_map(|case| BOTH.map(|dtype| (case, dtype))) {
        let what = format!("{case:?} {dtype:?}, mean {mean}");
        let (sizes, table, rms_eps) = case;
        let count = sizes.iter().product();
        let of_table = sizes[0] * table.iter().product::<usize>() * sizes[4];
        let x: Vec<f64> = draw(&mut rng, count, dtype)
            .iter()
            .map(|x| rounded(x + mean, dtype))
            .collect();
        let scale = draw(&mut rng, of_table, DType::F32);
        let taken = if rms_eps.is_some() {
            mean / (mean * mean + 1.0).sqrt()
        } else {
            mean
        };
        let shift: Vec<f64> = scale
            .iter()
            .map(|scale| rounded(0.3 - taken * scale, DType::F32))
            .collect();
        let expected = expected(case, &x, [&scale, &shift]);
        for blocks in [None, Some([1, 1, 1])] {
            card.each_way(
                &what,
                |run| {
                    let (x, y) = (run.given(&x, dtype), run.room(count, dtype));
                    let [scale, shift] = [&scale, &shift].map(|table| run.given(table, DType::F32));
                    let read = Read {
                        x: x.at(),
                        scale: scale.at(),
                        shift: shift.at(),
                    };
                    let mut launch = forward(Sizes { x: sizes, table }, read, rms_eps, y.at(), dtype).unwrap();
                    launch.grid.blocks = blocks.unwrap_or(launch.grid.blocks);
                    run.launch(Ok(launch));
                    [y.numbers()]
                },
                |[y]| assert_exact(&what, &y, &expected, dtype, 6.0),
            );
        }
    }
}
