//! Ops of a block's recorded forward pass: all have their own backward pass, and none uses candle's graph.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Var};
use vtrain::data::Bucket;
use vtrain::lora;
use vtrain::lora::trainable::Trainable;
use vtrain::models::denoiser::State;
use vtrain::models::registry;
use vtrain::nn::Load;
use vtrain::nn::Weights;
use vtrain::nn::adapter::Adapt;
use vtrain::ops::tape::record;
use vtrain::rng::Rng;

const CHECKPOINTS: [&str; 6] = [
    "cogvideox/cogvideox-2b",
    "cogvideox/cogvideox-5b",
    "ltx_video/ltx-0.9.0",
    "wan/wan-2.1-t2v",
    "wan/wan-2.1-i2v",
    "wan/wan-2.1-flf2v",
];

/// Adapters with dropout.
fn adapters(dropout: f64) -> Arc<Trainable> {
    let config = lora::Config {
        rank: 2,
        dropout,
        ..lora::Config::default()
    };
    let trainable = Trainable::new(&config, &[], Rng::new(0), &Device::Cpu).unwrap();
    trainable.dropout().set(Some(5));
    Arc::new(trainable)
}

#[test]
fn candle_computes_nothing_in_a_block_that_learns() {
    for checkpoint in CHECKPOINTS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(checkpoint);
        for (what, trainable) in [
            ("frozen", None),
            ("with adapters", Some(adapters(0.0))),
            ("with adapters that drop", Some(adapters(0.1))),
        ] {
            let weights = Weights::random(&Load {
                adapters: trainable.map(|trainable| trainable as Arc<dyn Adapt>),
                ..Load::new(DType::F32, &Device::Cpu)
            });
            let bucket = Bucket::from([9, 32, 64]);
            let batch = registry::open_synthetic(&folder, weights, bucket, 2).unwrap();
            let state = batch.denoiser.embed(&batch.input).unwrap();
            // As after a previous block with trained adapters.
            let hidden = Var::from_tensor(&state.hidden.detach()).unwrap().into_inner();
            let state = State { hidden, ..state };
            let (after, tape) = record(|| batch.denoiser.block(0, &state)).unwrap();
            let found = tape.by_candle();
            assert!(found.is_empty(), "{checkpoint} {what}: candle computed {found:?}");
            assert!(
                after.hidden.is_variable(),
                "{checkpoint} {what}: the last step is candle's"
            );
        }
    }
}
