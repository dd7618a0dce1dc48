//! Sizes at which code takes another way: tiles, strips, chunks for threads, pieces of a file. What is computed is the same on
//! both sides of each, and a constant of that kind that no test here or elsewhere reaches fails.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use vtrain::dist;
use vtrain::nn::Weights;
use vtrain::nn::dropout::{Dropout, Seed};
use vtrain::ops::activation::silu;
use vtrain::ops::linear::Frozen;
use vtrain::optim::adamw::{self, AdamW};
use vtrain::optim::clip;
use vtrain::optim::ema::Ema;
use vtrain::rng::Rng;

/// Constants that cut work into pieces, and the test that has less than one piece, and more.
const PIECES: &[(&str, &str)] = &[
    ("dist/mpi.rs MOST", "thresholds::pieces_cover_a_length_in_order"),
    (
        "finite.rs STRETCH",
        "finite::the_first_number_that_is_none_is_found_in_every_format",
    ),
    (
        "lora/merge.rs CHUNK",
        "lora_formats::rows_behind_the_first_32_mib_of_a_weight_get_their_own_change",
    ),
    (
        "nn/conv3d/direct.rs BLOCK_PIXELS",
        "conv3d::a_convolution_is_what_its_definition_says_with_whatever_vectors",
    ),
    (
        "nn/conv3d/direct.rs PASS",
        "conv3d::a_convolution_is_what_its_definition_says_with_whatever_vectors",
    ),
    (
        "nn/conv3d/direct.rs STEP_PIXELS",
        "conv3d::a_convolution_is_what_its_definition_says_with_whatever_vectors",
    ),
    (
        "nn/conv3d/moments.rs STRETCH",
        "conv3d::group_moments_hold_far_from_zero",
    ),
    (
        "ops/dropout.rs CHUNK",
        "thresholds::dropout_draws_each_number_by_its_place",
    ),
    (
        "nn/made_up.rs CHUNK",
        "thresholds::numbers_that_are_made_up_do_not_come_again_after_a_chunk",
    ),
    (
        "ops/attention/backward.rs KEYS",
        "ops::attention::a_mask_is_read_at_the_place_of_each_tile_of_keys",
    ),
    (
        "ops/attention/backward.rs PIECE",
        "ops::attention::long_sequences_agree_with_the_whole_matrix_in_f64",
    ),
    (
        "ops/attention/backward.rs QUERIES",
        "ops::attention::a_mask_is_read_at_the_place_of_each_tile_of_keys",
    ),
    (
        "ops/attention/forward.rs KEYS",
        "ops::attention::a_mask_is_read_at_the_place_of_each_tile_of_keys",
    ),
    (
        "ops/attention/forward.rs QUERIES",
        "ops::attention::a_mask_is_read_at_the_place_of_each_tile_of_keys",
    ),
    (
        "ops/linear.rs STRIP",
        "thresholds::a_matrix_in_bf16_is_the_same_in_one_strip_and_in_several",
    ),
    ("ops/parts.rs ROWS", "ops::norm::a_norm_holds_in_any_form"),
    ("ops/rotary.rs TOKENS", "ops::rotary::a_turn_holds_in_any_form"),
    (
        "ops/slices.rs CHUNK",
        "thresholds::numbers_in_bf16_are_read_and_written_alike_in_every_chunk",
    ),
    ("ops/tile.rs PANEL", "ops::tile::products_are_those_of_a_plain_loop"),
    (
        "optim/in_place.rs CHUNK",
        "thresholds::the_optimiser_and_the_average_move_each_number_by_itself",
    ),
    (
        "sample/mod.rs ONE_BATCH",
        "flow_family::guidance_is_the_same_in_one_batch_and_one_prompt_after_the_other",
    ),
    (
        "text/transpose.rs TILE",
        "text::embeddings::embeddings_equal_transformers_with_and_without_a_mask",
    ),
];

/// Constants of the same modules that are no such sizes: what they are.
const OTHERS: &[(&str, &str)] = &[
    ("lora/file.rs MAX_BYTES", "a limit: larger files are refused"),
    ("lora/file.rs MAX_CONFIG_BYTES", "a limit: larger files are refused"),
    ("lora/merge.rs MAX_HEADER_BYTES", "a limit: larger headers are refused"),
    ("lora/svd.rs SWEEPS", "a limit: iterations end there"),
    ("ops/dropout.rs GAMMA", "of SplitMix64"),
    ("nn/weights.rs SHOWN", "a limit: more are counted in a message"),
    (
        "nn/conv3d/by_candle.rs ONES",
        "channels beside the others, whatever their number",
    ),
    (
        "nn/conv3d/by_candle.rs STACK",
        "frames of one product on a GPU: too large to be reached here",
    ),
    (
        "ops/attention/launch.rs SIDE",
        "of a launch: tests/kernels.rs has sizes on both sides",
    ),
    (
        "ops/kernel/rows.rs MOST_PARTS",
        "of a launch: tests/kernels.rs has sizes on both sides",
    ),
    (
        "optim/launch.rs PIECE",
        "of a launch: tests/kernels.rs has sizes on both sides",
    ),
    (
        "optim/launch.rs THREADS",
        "of a launch: tests/kernels.rs has sizes on both sides",
    ),
    ("nn/config.rs MAX_BYTES", "a limit: larger files are refused"),
    (
        "nn/weight_files.rs MAX_INDEX_BYTES",
        "a limit: larger files are refused",
    ),
    (
        "ops/attention/backward.rs PIECES",
        "how many pieces there are at most; long sequences have them",
    ),
    (
        "ops/tile.rs COLUMNS",
        "the width of a vector: all sizes of tests go beside it",
    ),
    (
        "ops/wide.rs LANES",
        "the width of a vector: all sizes of tests go beside it",
    ),
    (
        "optim/clip.rs LANES",
        "the order of additions: optim holds norms of all lengths",
    ),
    (
        "text/sentencepiece.rs MAX_MODEL_BYTES",
        "a limit: larger files are refused",
    ),
    (
        "text/sentencepiece/normalize.rs MAX_REPLACEMENT_BYTES",
        "a limit: larger tables are refused",
    ),
    ("text/special.rs DEFAULT_EXTRA_IDS", "of T5"),
    ("text/special.rs MAX_EXTRA_IDS", "a limit: more are refused"),
    (
        "text/special.rs MAX_SIDE_FILE_BYTES",
        "a limit: larger files are refused",
    ),
    (
        "text/t5/elementwise.rs LANES",
        "the width of a vector: all sizes of tests go beside it",
    ),
    ("text/tokenize.rs MAX_JSON_BYTES", "a limit: larger files are refused"),
    ("text/clean.rs MAX_ROUNDS", "a limit: unescaping ends there"),
    (
        "diffusion/schedulers/config/mod.rs MAX_BYTES",
        "a limit: larger files are refused",
    ),
];

/// Of the modules that compute: whole numbers that are constants of a file, without what runs on GPUs only.
fn constants() -> BTreeSet<String> {
    let (source, mut found) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), BTreeSet::new());
    let folders = [
        "diffusion",
        "dist",
        "lora",
        "nn",
        "ops",
        "optim",
        "sample",
        "text",
        "finite.rs",
    ];
    let mut waiting: Vec<_> = folders.iter().map(|name| source.join(name)).collect();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let name = path.strip_prefix(&source).unwrap().to_str().unwrap().to_string();
        if !name.ends_with(".rs") || name.contains("cuda") || name.contains("cudnn") {
            continue;
        }
        for line in fs::read_to_string(&path).unwrap().lines() {
            let line = line.trim_start_matches("pub(super) ").trim_start_matches("pub ");
            let constant = line.strip_prefix("const ").and_then(|rest| rest.split_once(": "));
            if let Some((constant, rest)) = constant
                && ["usize = ", "u64 = "].iter().any(|kind| rest.starts_with(kind))
            {
                found.insert(format!("{name} {constant}"));
            }
        }
    }
    found
}

#[test]
fn every_size_at_which_work_is_cut_has_a_test_on_both_sides() {
    let there = constants();
    let table = PIECES.iter().map(|(name, test)| (name.to_string(), *test));
    let others: BTreeSet<String> = OTHERS.iter().map(|(name, _)| name.to_string()).collect();
    let gone: Vec<_> = others.difference(&there).collect();
    assert!(gone.is_empty(), "{gone:?}");
    let there = there.difference(&others).cloned().collect();
    let faults = crate::settings::faults(&there, table);
    assert!(faults.is_empty(), "tests/thresholds.rs:\n{}", faults.join("\n"));
}

fn randn(seed: u64, shape: &[usize]) -> Tensor {
    let numbers = Rng::new(seed).randn(shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    flat.to_vec1().unwrap()
}

#[test]
fn pieces_cover_a_length_in_order() {
    let pieces = |length, most| dist::pieces(length, most).collect::<Vec<_>>();
    assert!(pieces(0, 4).is_empty());
    assert_eq!(pieces(3, 4), [(0, 3)]);
    assert_eq!(pieces(4, 4), [(0, 4)]);
    assert_eq!(pieces(5, 4), [(0, 4), (4, 1)]);
    assert_eq!(pieces(9, 4), [(0, 4), (4, 4), (8, 1)]);
}

/// 2^20 numbers of a matrix in bf16 are widened at a time: 1024 rows of 1024.
#[test]
fn a_matrix_in_bf16_is_the_same_in_one_strip_and_in_several() {
    for rows in [1023, 1024, 1025, 2049] {
        let weight = randn(1, &[rows, 1024]).to_dtype(DType::BF16).unwrap();
        let (x, factors) = (randn(2, &[3, 1024]), randn(3, &[3, rows]));
        let there_and_back = |weight: Tensor| {
            let x = Var::from_tensor(&x).unwrap();
            let y = Frozen { weight, bias: None }.forward(&x).unwrap();
            let grads = (&y * &factors).unwrap().sum_all().unwrap().backward().unwrap();
            [values(&y), values(grads.get(&x).unwrap())]
        };
        let (narrow, wide) = (
            there_and_back(weight.clone()),
            there_and_back(weight.to_dtype(DType::F32).unwrap()),
        );
        for (narrow, wide) in narrow.iter().flatten().zip(wide.iter().flatten()) {
            assert!((narrow - wide).abs() <= 1e-3, "{rows} rows: {narrow} for {wide}");
        }
    }
}

/// 2^15 numbers are converted at a time.
#[test]
fn numbers_in_bf16_are_read_and_written_alike_in_every_chunk() {
    for count in [(1 << 15) - 1, 1 << 15, (1 << 15) + 1, 3 << 15] {
        let x = randn(4, &[count]).to_dtype(DType::BF16).unwrap();
        let expected = silu(&x.to_dtype(DType::F32).unwrap())
            .unwrap()
            .to_dtype(DType::BF16)
            .unwrap();
        assert_eq!(values(&silu(&x).unwrap()), values(&expected), "{count}");
    }
}

/// 2^14 numbers are drawn at a time: the i-th is what SplitMix64 has at the place i, whichever thread draws it.
#[test]
fn dropout_draws_each_number_by_its_place() {
    fn mix(at: u64) -> u64 {
        let z = at.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    let dropout = Dropout {
        probability: 0.25,
        seed: Seed::default(),
        layer: 3,
    };
    dropout.seed.set(Some(7));
    let start = mix(mix(7) ^ 3);
    for count in [(1 << 14) - 1, 1 << 14, (1 << 14) + 1, (2 << 14) + 5] {
        let x = Tensor::ones(count, DType::F32, &Device::Cpu).unwrap();
        let found = values(&dropout.forward(&x).unwrap());
        for (i, found) in found.into_iter().enumerate() {
            let draw = mix(start.wrapping_add(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i as u64)));
            let kept = draw >> 32 >= 1 << 30;
            assert_eq!(found > 0.0, kept, "{i} of {count}");
        }
    }
}

/// 2^16 numbers are made at a time.
#[test]
fn numbers_that_are_made_up_do_not_come_again_after_a_chunk() {
    let weights = Weights::random(DType::F32, &Device::Cpu);
    let (long, short) = ((3 << 16) + 5, 1 << 15);
    let made = |count: usize| values(&weights.get(count, "made_up.bias").unwrap());
    let all = made(long);
    assert_eq!(made(short), all[..short], "a number follows from its place");
    for chunk in 1..3 {
        let next = &all[chunk << 16..][..100];
        assert!(next != &all[..100], "chunk {chunk} is the first one again");
    }
}

/// 2^14 numbers are moved at a time; each moves as it does in a tensor of its own.
#[test]
fn the_optimiser_and_the_average_move_each_number_by_itself() {
    for count in [(1 << 14) - 1, 1 << 14, (1 << 14) + 1, (2 << 14) + 7] {
        let (first, gradient) = (randn(5, &[count]), randn(6, &[count]));
        let parts = [0, 1000, count - 100].map(|from| (from, 100));
        let moved = |from: usize, length: usize| {
            let own = |tensor: &Tensor| tensor.narrow(0, from, length).unwrap().copy().unwrap();
            let var = Var::from_tensor(&own(&first)).unwrap();
            let mut ema = Ema::new(vec![var.clone()], 0.9).unwrap();
            let mut optimizer = AdamW::new(vec![var.clone()], &adamw::Config::default()).unwrap();
            for _ in 0..3 {
                optimizer.step(&[own(&gradient)], 0.5, 0.1).unwrap();
                ema.update().unwrap();
            }
            (
                values(&var),
                values(&ema.averages()[0]),
                clip::global_norm(&[own(&gradient)]).unwrap(),
            )
        };
        let (var, average, norm) = moved(0, count);
        for (from, length) in parts {
            let (own_var, own_average, _) = moved(from, length);
            assert_eq!(var[from..from + length], own_var, "{count}: from {from}");
            assert_eq!(average[from..from + length], own_average, "{count}: from {from}");
        }
        let squares: f64 = values(&gradient).into_iter().map(|x| f64::from(x).powi(2)).sum();
        assert!((norm / squares.sqrt() - 1.0).abs() < 1e-9, "{count}");
    }
}
