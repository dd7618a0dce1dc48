//! HunyuanVideo, text and image to video. Paper: arXiv:2412.03603. Checkpoints: `hunyuanvideo-community/HunyuanVideo`,
//! `HunyuanVideo-I2V`, `HunyuanVideo-I2V-33ch`.

use crate::diffusion::schedulers::Scheduler;
use crate::models::family::{FamilySpec, FirstFrame, GgufSpec, LoraLoading, TextShape};
use crate::models::synthetic::synthetic_spec;
use crate::models::transformer::Network as _;
use crate::models::{FamilyName, Footprint};

pub mod dit;
mod family;
mod names;
pub mod vae;

pub use family::HunyuanVideo;

use names::NAMES;

/// Widths of the published text encoders: of LLaMA's tokens, and of CLIP's vector.
const TEXT_WIDTH: usize = 4096;
const POOLED_WIDTH: usize = 768;

/// Layers that stay dense in GGUF files.
const DENSE_IN_GGUF: &[&str] = &[
    "img_in",
    "txt_in",
    "time_in",
    "vector_in",
    "guidance_in",
    "^final_layer.",
];

/// Recognition and constructors of the family.
pub static SPEC: FamilySpec = FamilySpec {
    name: FamilyName::HunyuanVideo,
    title: NAMES.title,
    names: &NAMES,
    pipeline: "HunyuanVideo",
    pipelines: ["HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"],
    lora_loading: LoraLoading::Pipeline,
    transformer: "HunyuanVideoTransformer3DModel",
    repository: "hunyuanvideo",
    frame_rate: 24.0,
    footprint: Footprint {
        first_frame: FirstFrame::Alone,
        latent_channels: 16,
        temporal_compression: 4,
        spatial_compression: 8,
        text: TextShape {
            pooled: Some(POOLED_WIDTH),
            ..TextShape::masked(dit::TEXT_TOKENS, TEXT_WIDTH)
        },
    },
    takes_scheduler: |scheduler| matches!(scheduler, Scheduler::FlowMatchEuler(config) if !config.invert_sigmas),
    schedulers: "FlowMatchEulerDiscreteScheduler without invert_sigmas",
    open: |directory| Ok(Box::new(HunyuanVideo::open(directory)?)),
    synthetic: synthetic_spec::<dit::Network>,
    dense_modules: dit::Network::DENSE_MODULES,
    gguf: Some(GgufSpec::new("hyvid", DENSE_IN_GGUF)),
};
