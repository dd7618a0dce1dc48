//! CogVideoX (2b, 5b, 1.5, I2V). Paper: arXiv:2408.06072. Checkpoints: `THUDM/CogVideoX-2b`, `-5b`, `1.5-5B`, `-5b-I2V`.

use crate::diffusion::schedulers::Scheduler;
use crate::models::family::{DenseModules, FamilySpec, FirstFrame, LoraLoading, TextShape};
use crate::models::synthetic::synthetic_spec;
use crate::models::{FamilyName, Footprint};

pub mod dit;
mod family;
mod names;
pub mod vae;

pub use family::CogVideoX;

use names::NAMES;

/// Recognition and constructors of the family.
pub static SPEC: FamilySpec = FamilySpec {
    name: FamilyName::CogVideoX,
    title: NAMES.title,
    names: &NAMES,
    pipeline: "CogVideoX",
    pipelines: ["CogVideoXPipeline", "CogVideoXImageToVideoPipeline"],
    lora_loading: LoraLoading::Pipeline,
    transformer: "CogVideoXTransformer3DModel",
    repository: "cogvideox",
    frame_rate: 8.0,
    footprint: Footprint {
        first_frame: FirstFrame::Alone,
        latent_channels: 16,
        temporal_compression: 4,
        spatial_compression: 8,
        text: TextShape::new(226, 4096),
    },
    takes_scheduler: |scheduler| matches!(scheduler, Scheduler::Ddim(_) | Scheduler::Dpm(_)),
    schedulers: "CogVideoXDDIMScheduler or CogVideoXDPMScheduler",
    open: |directory| Ok(Box::new(CogVideoX::open(directory)?)),
    synthetic: synthetic_spec::<dit::Network>,
    dense_modules: DenseModules::NONE,
    gguf: None,
};
