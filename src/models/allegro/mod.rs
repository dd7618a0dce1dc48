//! Allegro, text to video (2.8B). Paper: arXiv:2410.15458. Checkpoint: `rhymes-ai/Allegro`.
//!
//! Allegro-TI2V, which starts from images, is another transformer, which diffusers does not have.

use crate::diffusion::schedulers::Scheduler;
use crate::models::family::{FamilySpec, FirstFrame, LoraLoading, TextShape};
use crate::models::synthetic::synthetic_spec;
use crate::models::transformer::Network as _;
use crate::models::{FamilyName, Footprint};

pub mod dit;
mod family;
mod names;
pub mod vae;

pub use family::Allegro;

use names::NAMES;

/// Recognition and constructors of the family.
pub static SPEC: FamilySpec = FamilySpec {
    name: FamilyName::Allegro,
    title: NAMES.title,
    names: &NAMES,
    pipeline: "Allegro",
    pipelines: ["AllegroPipeline"; 2],
    lora_loading: LoraLoading::Peft,
    transformer: "AllegroTransformer3DModel",
    repository: "allegro",
    frame_rate: 15.0,
    footprint: Footprint {
        first_frame: FirstFrame::Grouped,
        latent_channels: 4,
        temporal_compression: 4,
        spatial_compression: 8,
        text: TextShape::masked(dit::TEXT_TOKENS, 4096),
    },
    takes_scheduler: |scheduler| matches!(scheduler, Scheduler::EulerAncestral(_)),
    schedulers: "EulerAncestralDiscreteScheduler",
    open: |directory| Ok(Box::new(Allegro::open(directory)?)),
    synthetic: synthetic_spec::<dit::Network>,
    dense_modules: dit::Network::DENSE_MODULES,
    gguf: None,
};
