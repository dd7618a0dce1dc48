//! Wan 2.1 (T2V 1.3B and 14B, I2V 14B). Paper: arXiv:2503.20314. Checkpoints: `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`,
//! `-T2V-14B-Diffusers`, `-I2V-14B-480P-Diffusers`, `-I2V-14B-720P-Diffusers`.

use std::path::Path;

use crate::data::cache::Footprint;
use crate::models::FamilyName;
use crate::models::rooms::Room;

mod bare;
pub mod dit;
mod family;
mod names;
pub mod vae;

pub use bare::bare;
pub use family::Wan;
use names::NAMES;

/// How the family is found and opened.
pub const ROOM: Room = Room {
    name: FamilyName::Wan,
    title: NAMES.title,
    names: &NAMES,
    pipeline: "Wan",
    transformer: "WanTransformer3DModel",
    repository: "wan2.1",
    open: |directory, reading, remembered| Ok(Box::new(Wan::open(directory, reading, remembered)?)),
    bare,
    footprint: FOOTPRINT,
    footprint_of,
};

/// What the published checkpoints encode a clip and a caption into.
const FOOTPRINT: Footprint = Footprint {
    latent_channels: 16,
    temporal_compression: 4,
    spatial_compression: 8,
    text_tokens: family::TEXT_TOKENS,
    text_width: 4096,
};

/// The same, for the checkpoint in `directory`; None where its configs cannot be read.
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
