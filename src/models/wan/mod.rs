//! Wan 2.1 (T2V 1.3B and 14B, I2V 14B). Paper: arXiv:2503.20314. Checkpoints: `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`,
//! `-T2V-14B-Diffusers`, `-I2V-14B-480P-Diffusers`, `-I2V-14B-720P-Diffusers`.

use crate::diffusion::schedulers::Scheduler;
use crate::models::family::{FamilySpec, FirstFrame, GgufSpec, LoraLoading, TextShape};
use crate::models::synthetic::synthetic_spec;
use crate::models::transformer::Network as _;
use crate::models::{FamilyName, Footprint};

pub mod dit;
mod family;
mod names;
pub mod vae;

pub use family::Wan;

use names::NAMES;

/// Layers that stay dense in GGUF files; `time_` is of the embedding and its projection.
const DENSE_IN_GGUF: &[&str] = &["patch_embedding", "text_embedding", "time_", "img_emb", "^head."];

/// Recognition and constructors of the family.
pub static SPEC: FamilySpec = FamilySpec {
    name: FamilyName::Wan,
    title: NAMES.title,
    names: &NAMES,
    pipeline: "Wan",
    pipelines: ["WanPipeline", "WanImageToVideoPipeline"],
    lora_loading: LoraLoading::Pipeline,
    transformer: "WanTransformer3DModel",
    repository: "wan2.1",
    frame_rate: 16.0,
    footprint: Footprint {
        first_frame: FirstFrame::Alone,
        latent_channels: 16,
        temporal_compression: 4,
        spatial_compression: 8,
        text: TextShape::new(dit::TEXT_TOKENS, 4096),
    },
    takes_scheduler: |scheduler| match scheduler {
        Scheduler::FlowMatchEuler(config) => !config.invert_sigmas,
        Scheduler::UniPc(_) | Scheduler::DpmSolver(_) => true,
        Scheduler::Ddim(_) | Scheduler::Dpm(_) | Scheduler::EulerAncestral(_) => false,
    },
    schedulers: "a scheduler of flow matching without invert_sigmas, UniPCMultistepScheduler or FlowMatchEulerDiscreteScheduler",
    open: |directory| Ok(Box::new(Wan::open(directory)?)),
    synthetic: synthetic_spec::<dit::Network>,
    dense_modules: dit::Network::DENSE_MODULES,
    gguf: Some(GgufSpec::new("wan", DENSE_IN_GGUF)),
};
