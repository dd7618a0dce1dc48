use candle_core::{Device, Result, Tensor};
use vtrain::ops::rotary::{PairLayout, Rotation};

use super::elementwise::{equals_formula, equals_torch, holds_in_any_form, numbers, randn};

/// Angles of the fixtures.
fn angle(token: usize, pair: usize) -> f64 {
    token as f64 / 7.0 + pair as f64 / 3.0
}

fn turn(pairs: PairLayout, first: usize, tokens: usize, width: usize) -> Rotation {
    let table = |f: fn(f64) -> f64| {
        let numbers =
            (0..tokens - first).flat_map(|token| (0..width / 2).map(move |pair| f(angle(token, pair)) as f32));
        Tensor::from_vec(numbers.collect(), (tokens - first, width / 2), &Device::Cpu).unwrap()
    };
    Rotation {
        cos: table(f64::cos),
        sin: table(f64::sin),
        pairs,
        first,
    }
}

fn op(turn: Rotation) -> impl Fn(&[Tensor]) -> Result<Tensor> + Sync {
    move |x| turn.forward(&x[0])
}

#[test]
fn turns_are_those_of_torch() {
    for (name, turn) in [
        ("neighbours", turn(PairLayout::Neighbours, 2, 7, 10)),
        ("halves", turn(PairLayout::Halves, 0, 7, 10)),
    ] {
        equals_torch(name, &["x"], &|x| turn.reference(&x[0]));
        equals_torch(name, &["x"], &op(turn));
    }
}

#[test]
fn turns_and_their_gradients_follow_the_formula() {
    let sizes = [(0, 3, 2, 6), (2, 4, 1, 2), (3, 3, 2, 4), (0, 1, 1, 34)];
    for (pairs, sizes) in [
        (PairLayout::Neighbours, sizes),
        (PairLayout::Halves, sizes),
        (PairLayout::HalvesOf(1), sizes),
        (
            PairLayout::HalvesOf(3),
            [(0, 3, 2, 6), (2, 4, 1, 12), (3, 3, 2, 18), (1, 2, 3, 96)],
        ),
    ] {
        for (first, tokens, heads, width) in sizes {
            let turn = turn(pairs, first, tokens, width);
            let (cos, sin) = (numbers(&turn.cos), numbers(&turn.sin));
            let formula = |inputs: &[Vec<f64>]| {
                let mut y = inputs[0].clone();
                for (row, y) in y.chunks_mut(width).enumerate() {
                    let token = row / heads % tokens;
                    for pair in 0..if token < first { 0 } else { width / 2 } {
                        let at = (token - first) * width / 2 + pair;
                        let (i, j) = match pairs {
                            PairLayout::Neighbours => (2 * pair, 2 * pair + 1),
                            PairLayout::Halves => (pair, pair + width / 2),
                            PairLayout::HalvesOf(parts) => {
                                let half = width / parts / 2;
                                let first = pair / half * 2 * half + pair % half;
                                (first, first + half)
                            }
                        };
                        (y[i], y[j]) = (y[i] * cos[at] - y[j] * sin[at], y[j] * cos[at] + y[i] * sin[at]);
                    }
                }
                y
            };
            let x = [randn(1, &[2, tokens, heads, width])];
            equals_formula(&|x| turn.reference(&x[0]), &formula, &x);
            equals_formula(&op(turn.clone()), &formula, &x);
        }
    }
}

#[test]
fn a_turn_holds_in_any_form() {
    for pairs in [PairLayout::Neighbours, PairLayout::Halves] {
        holds_in_any_form(&op(turn(pairs, 5, 150, 34)), &[randn(1, &[2, 150, 3, 34])]);
    }
    holds_in_any_form(
        &op(turn(PairLayout::HalvesOf(3), 5, 150, 24)),
        &[randn(1, &[2, 150, 3, 24])],
    );
}

#[test]
fn a_table_may_have_gaps_between_its_numbers() {
    let whole = turn(PairLayout::Neighbours, 2, 7, 10);
    let with_gaps = |table: &Tensor| {
        let wide = Tensor::cat(&[table, table], 1).unwrap();
        wide.narrow(1, 0, table.dims()[1]).unwrap()
    };
    let x = randn(1, &[2, 7, 3, 10]);
    let expected = numbers(&whole.forward(&x).unwrap());
    for (cos, sin) in [(true, false), (false, true)] {
        let mut turn = whole.clone();
        if cos {
            turn.cos = with_gaps(&whole.cos);
        }
        if sin {
            turn.sin = with_gaps(&whole.sin);
        }
        assert_eq!(numbers(&turn.forward(&x).unwrap()), expected, "{cos} {sin}");
    }
}

#[test]
fn nothing_does_not_turn_and_what_does_not_fit_is_refused() {
    let whole = turn(PairLayout::Halves, 2, 7, 10);
    assert_eq!(whole.forward(&randn(1, &[0, 7, 3, 10])).unwrap().dims(), [0, 7, 3, 10]);
    for shape in [[1, 6, 3, 10], [1, 7, 3, 12], [1, 7, 3, 9]] {
        assert!(whole.forward(&randn(1, &shape)).is_err(), "{shape:?}");
    }
    let thirds = turn(PairLayout::HalvesOf(3), 2, 7, 10);
    assert!(thirds.forward(&randn(1, &[1, 7, 3, 10])).is_err(), "thirds of 10");
}

#[test]
fn samples_and_heads_may_turn_by_tables_of_their_own() {
    let (tokens, first, heads, width) = (5, 1, 3, 4);
    let x = randn(3, &[2, tokens, heads, width]);
    let angles = randn(4, &[2, tokens - first, heads * width / 2]);
    let turn = |angles: &Tensor| Rotation {
        cos: angles.cos().unwrap(),
        sin: angles.sin().unwrap(),
        pairs: PairLayout::Neighbours,
        first,
    };
    let together = turn(&angles).forward(&x).unwrap();
    let composed = turn(&angles).reference(&x).unwrap();
    for sample in 0..2 {
        for head in 0..heads {
            let of = |x: &Tensor| x.narrow(0, sample, 1).unwrap().narrow(2, head, 1).unwrap();
            let angles = angles
                .get(sample)
                .unwrap()
                .narrow(1, head * width / 2, width / 2)
                .unwrap();
            let alone = turn(&angles.contiguous().unwrap()).forward(&of(&x)).unwrap();
            assert_eq!(numbers(&of(&together)), numbers(&alone));
            for (a, b) in numbers(&of(&composed)).iter().zip(numbers(&alone)) {
                assert!((a - b).abs() <= 1e-6);
            }
        }
    }
    let halves = Rotation {
        pairs: PairLayout::Halves,
        ..turn(&angles)
    };
    assert!(halves.forward(&x).is_err(), "halves of what?");
    assert!(
        turn(&angles).forward(&x.narrow(0, 0, 1).unwrap()).is_err(),
        "two tables, one sample"
    );
}
