//! Memory that FasterCache takes, in a network whose blocks, tokens and widths are to each other as those of CogVideoX-5b with
//! 49 frames of 480x720: 12 D^2 numbers a block, and D S a layer, with S near 6 D.

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use vtrain::diffusion::guidance::NeededPasses;
use vtrain::models::cogvideox::dit::Dit;
use vtrain::models::denoiser::Input;
use vtrain::nn::{Load, Weights};
use vtrain::sample::step_cache::{Config, Pass, Step, Work};

use crate::counting::{on_one_thread, peak};

const BLOCKS: usize = 12;
const WIDTH: usize = 64;
const TEXT: usize = 8;
const STEPS: usize = 3;

/// Peak bytes of loading the network and of some steps under guidance, and the steps' attention: computed or reused.
fn bytes(cache: &str, dtype: DType) -> (u64, Vec<Work>) {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "num_attention_heads": 2, "attention_head_dim": WIDTH / 2, "num_layers": BLOCKS, "in_channels": 4, "out_channels": 4,
        "text_embed_dim": 16, "max_text_seq_length": TEXT, "time_embed_dim": WIDTH / 6 * 2, "sample_height": 24,
        "sample_width": 20, "sample_frames": 9, "use_rotary_positional_embeddings": true,
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let zeros = |shape: &[usize]| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let step = |i| Step {
        timestep: 600.0 - 50.0 * i as f64,
        passes: NeededPasses::Both,
    };
    let steps: Vec<Step> = (0..STEPS).map(step).collect();
    let (works, bytes) = peak(|| {
        let dit = Dit::load_from(folder.path(), Weights::random(&Load::new(dtype, &Device::Cpu))).unwrap();
        let mut cache = cache.parse::<Config>().unwrap().start(&steps).unwrap();
        let run = |step: &Step| {
            let timestep = Tensor::full(step.timestep as f32, 1, &Device::Cpu).unwrap();
            let input = Input::new(zeros(&[1, 3, 4, 24, 20]), timestep, zeros(&[1, TEXT, 16]));
            let (_, work) = cache.predict(&dit, &input, Pass::Positive).unwrap();
            cache.predict(&dit, &input, Pass::Negative).unwrap();
            work
        };
        steps.iter().map(run).collect()
    });
    (bytes, works)
}

#[test]
fn faster_cache_takes_at_most_a_quarter_more_memory_than_plain_sampling() {
    for dtype in [DType::F32, DType::BF16] {
        let [(plain, _), (cached, works)] = ["none", "fastercache"].map(|cache| on_one_thread(|| bytes(cache, dtype)));
        let (c, r) = (Work::Computed, Work::Reused);
        assert_eq!(works, [c, r, c]);
        let share = cached as f64 / plain as f64;
        println!("{dtype:?}: {plain} {cached} {share:.3}");
        assert!(share <= 1.25, "{dtype:?}: {share}");
    }
}
