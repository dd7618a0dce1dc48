//! LTX-Video (2B: 0.9.0, 0.9.1, 0.9.5). Paper: arXiv:2501.00103. Checkpoints: `Lightricks/LTX-Video`, `-0.9.1`, `-0.9.5`.

use std::path::Path;

use crate::models::spec::FamilySpec;
use crate::models::{FamilyName, Footprint};

pub mod dit;
mod family;
mod names;
mod synthetic;
pub mod vae;

pub use family::LtxVideo;

use dit::{SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION};
use family::TEXT_TOKENS;
use names::NAMES;

/// Recognition and constructors of the family.
pub const SPEC: FamilySpec = FamilySpec {
    name: FamilyName::LtxVideo,
    title: NAMES.title,
    names: &NAMES,
    pipeline: "LTX",
    transformer: "LTXVideoTransformer3DModel",
    repository: "ltx-video",
    open: |directory, reading, remembered| Ok(Box::new(LtxVideo::open(directory, reading, remembered)?)),
    synthetic: synthetic::synthetic_batch,
    footprint: FOOTPRINT,
    footprint_of,
};

/// Encoding sizes of the published checkpoints.
const FOOTPRINT: Footprint = Footprint {
    latent_channels: 128,
    temporal_compression: TEMPORAL_COMPRESSION,
    spatial_compression: SPATIAL_COMPRESSION,
    text_tokens: TEXT_TOKENS,
    text_width: 4096,
};

/// Encoding sizes of the checkpoint in `directory`; None if its config cannot be read.
fn footprint_of(directory: &Path) -> Option<Footprint> {
    let transformer = dit::Config::load(&directory.join("transformer")).ok()?;
    Some(Footprint {
        latent_channels: transformer.in_channels,
        text_width: transformer.caption_channels,
        ..FOOTPRINT
    })
}
