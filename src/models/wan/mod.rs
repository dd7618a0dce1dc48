//! Wan 2.1 (T2V 1.3B and 14B, I2V 14B). Paper: arXiv:2503.20314. Checkpoints: `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`,
//! `-T2V-14B-Diffusers`, `-I2V-14B-480P-Diffusers`, `-I2V-14B-720P-Diffusers`.

use std::path::Path;

use crate::models::spec::FamilySpec;
use crate::models::{FamilyName, Footprint};

pub mod dit;
mod family;
mod names;
mod synthetic;
pub mod vae;

pub use family::Wan;

use names::NAMES;

/// Recognition and constructors of the family.
pub const SPEC: FamilySpec = FamilySpec {
    name: FamilyName::Wan,
    title: NAMES.title,
    names: &NAMES,
    pipeline: "Wan",
    transformer: "WanTransformer3DModel",
    repository: "wan2.1",
    open: |directory, reading, remembered| Ok(Box::new(Wan::open(directory, reading, remembered)?)),
    synthetic: synthetic::synthetic_batch,
    footprint: FOOTPRINT,
    footprint_of,
};

/// Encoding sizes of the published checkpoints.
const FOOTPRINT: Footprint = Footprint {
    latent_channels: 16,
    temporal_compression: 4,
    spatial_compression: 8,
    text_tokens: family::TEXT_TOKENS,
    text_width: 4096,
};

/// Encoding sizes of the checkpoint in `directory`; None if its configs cannot be read.
fn footprint_of(directory: &Path) -> Option<Footprint> {
    let vae = vae::Config::read(&directory.join("vae")).ok()?;
    let transformer = dit::Config::load(&directory.join("transformer")).ok()?;
    Some(Footprint {
        latent_channels: vae.latent_channels(),
        temporal_compression: vae.temporal_compression(),
        spatial_compression: vae.spatial_compression(),
        text_tokens: family::TEXT_TOKENS,
        text_width: transformer.text_dim,
    })
}
