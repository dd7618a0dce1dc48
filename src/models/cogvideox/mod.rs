//! CogVideoX (2b, 5b, 1.5, I2V). Paper: arXiv:2408.06072. Checkpoints: `THUDM/CogVideoX-2b`, `-5b`, `1.5-5B`, `-5b-I2V`.

pub mod vae;

use crate::data::cache::Footprint;

/// What the published checkpoints encode a clip and a caption into.
pub const FOOTPRINT: Footprint = Footprint {
    latent_channels: 16,
    temporal_compression: 4,
    spatial_compression: 8,
    text_tokens: 226,
    text_width: 4096,
};
