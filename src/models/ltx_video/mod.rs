//! LTX-Video (2B: 0.9.0, 0.9.1, 0.9.5). Paper: arXiv:2501.00103. Checkpoints: `Lightricks/LTX-Video`, `-0.9.1`, `-0.9.5`.

use crate::diffusion::schedulers::Scheduler;
use crate::models::family::{DenseModules, FamilySpec, FirstFrame, GgufSpec, LoraLoading, TextShape};
use crate::models::synthetic::synthetic_spec;
use crate::models::{FamilyName, Footprint};

pub mod dit;
mod family;
mod names;
pub mod vae;

use names::NAMES;

/// Layers that stay dense in GGUF files.
const DENSE_IN_GGUF: &[&str] = &["adaln_single", "caption_projection", "patchify_proj", "^proj_out."];

/// Recognition and constructors of the family.
pub static SPEC: FamilySpec = FamilySpec {
    name: FamilyName::LtxVideo,
    title: NAMES.title,
    names: &NAMES,
    pipeline: "LTX",
    pipelines: ["LTXPipeline", "LTXImageToVideoPipeline"],
    lora_loading: LoraLoading::Pipeline,
    transformer: "LTXVideoTransformer3DModel",
    repository: "ltx-video",
    frame_rate: 25.0,
    footprint: Footprint {
        first_frame: FirstFrame::Alone,
        latent_channels: 128,
        temporal_compression: dit::TEMPORAL_COMPRESSION,
        spatial_compression: dit::SPATIAL_COMPRESSION,
        text: TextShape::masked(dit::TEXT_TOKENS, 4096),
    },
    takes_scheduler: |scheduler| matches!(scheduler, Scheduler::FlowMatchEuler(config) if !config.invert_sigmas),
    schedulers: "FlowMatchEulerDiscreteScheduler without invert_sigmas",
    open: |directory| Ok(Box::new(family::LtxVideo::open(directory)?)),
    synthetic: synthetic_spec::<dit::Network>,
    dense_modules: DenseModules::NONE,
    gguf: Some(GgufSpec::new("ltxv", DENSE_IN_GGUF)),
};
