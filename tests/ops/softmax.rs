use vtrain::ops::attention::softmax::{Running, Tile, soften, soften_back};
use vtrain::ops::simd::Isa;
use vtrain::rng::Rng;

const STEP: usize = 150;
const ROWS: usize = 3;

/// Rows of one register, of those that are processed side by side, and of some more.
const LENGTHS: [usize; 5] = [16, 32, 64, 80, 144];

fn tile(numbers: &mut [f32], len: usize) -> Tile<'_> {
    Tile {
        numbers,
        step: STEP,
        len,
    }
}

/// Exponents of some tens are rounded to 4e-6.
fn assert_near(what: &str, found: f32, expected: f64) {
    let off = (f64::from(found) - expected).abs();
    assert!(
        off <= 4e-6 * expected.abs() + 1e-37,
        "{what}: {found:e}, not {expected:e}"
    );
}

#[test]
fn weights_and_their_sums_are_those_of_f64_whatever_the_vectors() {
    for isa in Isa::available() {
        for len in LENGTHS {
            let mut rng = Rng::new(4);
            // The second tile has larger scores, so that what was summed fades.
            let tiles = [1.0, 9.0].map(|scale| {
                rng.randn(ROWS * STEP)
                    .into_iter()
                    .map(|x| x * scale)
                    .collect::<Vec<_>>()
            });
            let mut running = [Running::START; ROWS];
            let mut out = vec![1f32; ROWS * STEP];
            let mut weights = tiles.clone();
            let mut first = [0f32; ROWS];
            for (i, weights) in weights.iter_mut().enumerate() {
                soften(isa, tile(weights, len), &mut running, tile(&mut out, 16));
                if i == 0 {
                    first = running.map(|running| running.largest);
                    out.fill(1.0);
                }
            }
            for row in 0..ROWS {
                let scores = |tile: usize| tiles[tile][row * STEP..][..len].iter().map(|x| f64::from(*x));
                let largest = scores(0).chain(scores(1)).fold(f64::MIN, f64::max);
                let name = format!("{isa:?}, {len} of row {row}");
                assert_eq!(f64::from(running[row].largest), largest, "{name}");
                let sum = scores(0).chain(scores(1)).map(|x| (x - largest).exp2()).sum::<f64>();
                assert_near(&name, running[row].sums.iter().sum(), sum);
                assert_near(&name, out[row * STEP], (f64::from(first[row]) - largest).exp2());
                assert_eq!(out[row * STEP + 16], 1.0, "{name}: beyond the row");
                for (found, score) in weights[1][row * STEP..].iter().zip(scores(1)) {
                    assert_near(&name, *found, (score - largest).exp2());
                }
                assert_eq!(
                    weights[1][row * STEP + len],
                    tiles[1][row * STEP + len],
                    "{name}: beyond the row"
                );
            }
        }
    }
}

#[test]
fn gradients_of_scores_are_those_of_f64_whatever_the_vectors() {
    for isa in Isa::available() {
        for len in LENGTHS {
            let mut rng = Rng::new(5);
            let (scores, slopes) = (rng.randn(ROWS * STEP), rng.randn(ROWS * STEP));
            let (log_sums, drifts) = ([4.0, 5.0, f32::INFINITY], [0.5, -0.5, 0.0]);
            let (mut weights, mut found) = (scores.clone(), slopes.clone());
            soften_back(isa, tile(&mut weights, len), tile(&mut found, len), &log_sums, &drifts);
            for i in 0..ROWS * STEP {
                let (row, col) = (i / STEP, i % STEP);
                let name = format!("{isa:?}, {col} of {len}");
                if col < len {
                    let weight = (f64::from(scores[i]) - f64::from(log_sums[row])).exp2();
                    assert_near(&name, weights[i], weight);
                    let slope = f64::from(slopes[i] - drifts[row]);
                    assert_near(&name, found[i], weight * slope);
                } else {
                    assert_eq!((weights[i], found[i]), (scores[i], slopes[i]), "{name}");
                }
            }
        }
    }
}

#[test]
fn scores_far_below_the_largest_vanish_and_what_is_no_number_stays() {
    for isa in Isa::available() {
        let mut scores = vec![f32::NEG_INFINITY; 2 * STEP];
        (scores[0], scores[1], scores[2], scores[3]) = (3.0, -123.5, -124.5, f32::MIN);
        scores[STEP + 5] = f32::NAN;
        let mut running = [Running::START; 2];
        let mut out = vec![0f32; 2 * STEP];
        soften(isa, tile(&mut scores, 16), &mut running, tile(&mut out, 16));
        assert_eq!(scores[0], 1.0, "{isa:?}");
        assert!(
            scores[1..16].iter().all(|x| (0.0..=2e-38).contains(x)),
            "{isa:?}: {:?}",
            &scores[..16]
        );
        assert!(scores[3..16].iter().all(|x| *x == 0.0), "{isa:?}");
        assert_eq!(running[0].sums.iter().sum::<f32>(), 1.0, "{isa:?}");
        assert!(
            scores[STEP + 5].is_nan() && running[1].sums.iter().sum::<f32>().is_nan(),
            "{isa:?}"
        );
    }
}
