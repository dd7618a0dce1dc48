//! torch's CPU generator, replayed. scripts/fixtures/make_rng.py writes the expected numbers.

use serde::Deserialize;
use vtrain::rng::{BadState, Rng, State};

#[derive(Deserialize)]
struct Fixture {
    seed: u64,
    streams: Vec<Vec<Call>>,
}

/// One call on a generator, and what torch answered.
#[derive(Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
enum Call {
    Randn { args: [usize; 1], out: Vec<f32> },
    Rand { args: [usize; 1], out: Vec<f32> },
    RandOne { out: f64 },
    Randint { args: (i64, i64, usize), out: Vec<i64> },
    Randperm { args: [usize; 1], out: Vec<usize> },
    RandnBitsSum { args: [usize; 1], out: u64 },
}

/// The f64 path below 16 numbers rests on the C library: one unit in the last place of an f32.
const SHORT_ULPS: u32 = 1;

fn replay(seed: u64) {
    let path = format!("{}/tests/fixtures/rng/seed-{seed}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    let fixture: Fixture = serde_json::from_str(&text).unwrap();
    assert_eq!(fixture.seed, seed);
    for stream in &fixture.streams {
        let mut rng = Rng::new(seed);
        stream.iter().for_each(|call| answers_as_torch(&mut rng, call));
    }
}

fn answers_as_torch(rng: &mut Rng, call: &Call) {
    match call {
        Call::Randn { args: [n], out } => {
            let got = rng.randn(*n);
            assert_eq!(got.len(), out.len());
            let ulps = if *n < 16 { SHORT_ULPS } else { 0 };
            for (i, (got, want)) in got.iter().zip(out).enumerate() {
                let apart = got.to_bits().abs_diff(want.to_bits());
                assert!(apart <= ulps, "randn({n})[{i}]: {got} but torch {want}");
            }
        }
        Call::Rand { args: [n], out } => assert_eq!(rng.rand(*n), *out),
        Call::RandOne { out } => assert!((rng.rand_one() - out).abs() <= f64::EPSILON),
        Call::Randint {
            args: (low, high, n),
            out,
        } => {
            assert_eq!(rng.randint(*low, *high, *n), *out, "randint({low}, {high}, {n})");
        }
        Call::Randperm { args: [n], out } => assert_eq!(rng.randperm(*n), *out),
        Call::RandnBitsSum { args: [n], out } => {
            let sum: u64 = rng.randn(*n).iter().map(|x| u64::from(x.to_bits())).sum();
            assert_eq!(sum, *out, "randn({n}) differs from torch somewhere");
        }
    }
}

#[test]
fn seed_0_answers_as_torch() {
    replay(0);
}

#[test]
fn seed_42_answers_as_torch() {
    replay(42);
}

#[test]
fn a_seed_above_2_to_the_31_answers_as_torch() {
    replay((1 << 31) + 11);
}

#[test]
fn a_seed_above_2_to_the_32_answers_as_torch() {
    replay((1 << 33) + 5);
}

#[test]
fn only_the_low_32_bits_of_a_seed_count() {
    assert_eq!(Rng::new(5).randn(20), Rng::new((7 << 32) + 5).randn(20));
}

#[test]
fn a_stream_goes_on_from_its_saved_state_exactly() {
    let mut rng = Rng::new(42);
    rng.rand(700); // past the first refill of the engine
    rng.randn(3); // one normal waits
    let saved = serde_json::to_string(&rng).unwrap();
    let mut resumed: Rng = serde_json::from_str(&saved).unwrap();
    assert_eq!(resumed, rng);
    assert_eq!(resumed.randn(1), rng.randn(1));
    assert_eq!(resumed.randn(100), rng.randn(100));
    assert_eq!(resumed.randint(0, 1000, 9), rng.randint(0, 1000, 9));
}

#[test]
fn a_state_that_no_stream_can_have_is_refused() {
    let state = |text: &str| serde_json::from_str::<State>(text).unwrap();
    let short = state(r#"{"words": [1, 2], "next": 0, "spare_normal_bits": null}"#);
    assert_eq!(Rng::from_state(short), Err(BadState::Words(2)));
    let words = serde_json::to_string(&vec![1; 624]).unwrap();
    let beyond = state(&format!(
        r#"{{"words": {words}, "next": 625, "spare_normal_bits": null}}"#
    ));
    assert_eq!(Rng::from_state(beyond), Err(BadState::Position(625)));
}

#[test]
#[should_panic(expected = "the range 3..3 is empty")]
fn an_empty_range_is_a_mistake_of_the_caller() {
    Rng::new(0).randint(3, 3, 1);
}
