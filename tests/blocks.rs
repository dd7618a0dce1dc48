//! Ops of a block's recorded forward pass: all have their own backward pass, and none uses candle's graph.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
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

const CHECKPOINTS: [&str; 9] = [
    "allegro/allegro-t2v",
    "cogvideox/cogvideox-2b",
    "cogvideox/cogvideox-5b",
    "ltx_video/ltx-0.9.0",
    "wan/wan-2.1-t2v",
    "wan/wan-2.1-i2v",
    "wan/wan-2.1-flf2v",
    "hunyuan_video/checkpoints/t2v",
    "mochi/mochi-1",
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
            let learned = |tensor: &Tensor| Var::from_tensor(&tensor.detach()).unwrap().into_inner();
            let (hidden, context) = (learned(&state.hidden), state.context.as_ref());
            let context = context.map(|text| if text.track_op() { learned(text) } else { text.clone() });
            let state = State {
                hidden,
                context,
                ..state
            };
            for block in 0..batch.denoiser.num_blocks() {
                let (after, tape) = record(|| batch.denoiser.block(block, &state)).unwrap();
                // Vectors that a sample has one of, as of its time, cost nothing.
                let found: Vec<_> = tape.by_candle().into_iter().filter(|dims| dims[1] > 1).collect();
                assert!(
                    found.is_empty(),
                    "{checkpoint} {what}, block {block}: candle computed {found:?}"
                );
                let last = after
                    .hidden
                    .sorted_nodes()
                    .iter()
                    .filter(|node| node.is_variable())
                    .count();
                assert_eq!(last, 1, "{checkpoint} {what}, block {block}: the last step is candle's");
            }
        }
    }
}
