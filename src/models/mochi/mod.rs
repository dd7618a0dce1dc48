//! Mochi 1, text to video. Code of its makers: <https://github.com/genmoai/mochi>. Checkpoint: `genmo/mochi-1-preview`.

use crate::diffusion::schedulers::Scheduler;
use crate::models::family::{FamilySpec, FirstFrame, LoraLoading, TextShape};
use crate::models::synthetic::synthetic_spec;
use crate::models::transformer::Network as _;
use crate::models::{FamilyName, Footprint};

pub mod dit;
mod family;
mod names;
pub mod vae;

pub use family::Mochi;

use names::NAMES;

/// Width of the published text encoder, T5 v1.1 XXL.
const TEXT_WIDTH: usize = 4096;

/// Recognition and constructors of the family.
pub static SPEC: FamilySpec = FamilySpec {
    name: FamilyName::Mochi,
    title: NAMES.title,
    names: &NAMES,
    pipeline: "Mochi",
    pipelines: ["MochiPipeline"; 2],
    lora_loading: LoraLoading::Pipeline,
    transformer: "MochiTransformer3DModel",
    repository: "mochi",
    frame_rate: 30.0,
    footprint: Footprint {
        first_frame: FirstFrame::Alone,
        latent_channels: 12,
        temporal_compression: 6,
        spatial_compression: 8,
        text: TextShape::masked(dit::TEXT_TOKENS, TEXT_WIDTH),
    },
    takes_scheduler: |scheduler| matches!(scheduler, Scheduler::FlowMatchEuler(config) if config.invert_sigmas),
    schedulers: "FlowMatchEulerDiscreteScheduler with invert_sigmas",
    open: |directory| Ok(Box::new(Mochi::open(directory)?)),
    synthetic: synthetic_spec::<dit::Network>,
    dense_modules: dit::Network::DENSE_MODULES,
    gguf: None,
};
