//! CogVideoX (2b, 5b, 1.5, I2V). Paper: arXiv:2408.06072. Checkpoints: `THUDM/CogVideoX-2b`, `-5b`, `1.5-5B`, `-5b-I2V`.

use std::path::Path;

use serde::Deserialize;

use crate::models::spec::FamilySpec;
use crate::models::{FamilyName, Footprint};

pub mod dit;
mod family;
mod names;
mod synthetic;
pub mod vae;

pub use family::CogVideoX;

use names::NAMES;

/// Recognition and constructors of the family.
pub const SPEC: FamilySpec = FamilySpec {
    name: FamilyName::CogVideoX,
    title: NAMES.title,
    names: &NAMES,
    pipeline: "CogVideoX",
    transformer: "CogVideoXTransformer3DModel",
    repository: "cogvideox",
    open: |directory, reading, remembered| Ok(Box::new(CogVideoX::open(directory, reading, remembered)?)),
    synthetic: synthetic::synthetic_batch,
    footprint: FOOTPRINT,
    footprint_of,
};

/// Encoding sizes of the published checkpoints.
const FOOTPRINT: Footprint = Footprint {
    latent_channels: 16,
    temporal_compression: 4,
    spatial_compression: 8,
    text_tokens: 226,
    text_width: 4096,
};

/// Encoding sizes of the checkpoint in `directory`; None if its configs cannot be read.
fn footprint_of(directory: &Path) -> Option<Footprint> {
    #[derive(Deserialize)]
    struct Vae {
        latent_channels: usize,
        temporal_compression_ratio: f64,
        block_out_channels: Vec<usize>,
    }
    #[derive(Deserialize)]
    struct Transformer {
        max_text_seq_length: usize,
        text_embed_dim: usize,
    }
    let read = |name: &str| std::fs::read(directory.join(name).join("config.json")).ok();
    let vae: Vae = serde_json::from_slice(&read("vae")?).ok()?;
    let transformer: Transformer = serde_json::from_slice(&read("transformer")?).ok()?;
    let halvings = u32::try_from(vae.block_out_channels.len().checked_sub(1)?).ok()?;
    Some(Footprint {
        latent_channels: vae.latent_channels,
        temporal_compression: vae.temporal_compression_ratio as usize,
        spatial_compression: 1usize.checked_shl(halvings)?,
        text_tokens: transformer.max_text_seq_length,
        text_width: transformer.text_embed_dim,
    })
}
