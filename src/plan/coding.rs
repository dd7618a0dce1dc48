//! Memory of a video autoencoder: its encoder on a clip, its decoder on a clip's latents, by the figure that
//! `vae_tiling: auto` follows ([`Family::vae_cost`]).

use super::Subject;
use super::findings::CodingKey;
use super::timeline::Place;
use super::training::Memory;
use crate::config::RunConfig;
use crate::data::Bucket;
use crate::models::Family;
use crate::models::family::Parts;

/// Colours of a clip.
const COLOURS: usize = 3;

/// Bytes of a number of a decoded clip.
const WIDE: usize = 4;

impl Subject<'_> {
    /// Returns the peak of a half of the autoencoder while it codes one clip, with the clip.
    ///
    /// # Errors
    /// Those of the autoencoder's files.
    pub(super) fn coding(
        &self,
        config: &RunConfig,
        family: &dyn Family,
        bucket: Bucket,
        half: Parts,
    ) -> anyhow::Result<Memory> {
        let load = config.model.load(&candle_core::Device::Cpu);
        let load = load.with_vae(config.precompute.vae_memory(self.free));
        let load = load.with_header_cache(self.findings.headers());
        let load = match self.place {
            Place::Host { .. } => load,
            Place::Gpu => load.with_reference_ops(),
        };
        let Bucket { frames, height, width } = bucket;
        let key = CodingKey {
            bucket,
            half,
            dtype: load.dtype,
            memory: load.vae,
        };
        let cost = || Ok(family.vae_cost(half, &load, [frames, height, width])?.peak());
        let most = self.findings.coding(key, cost)?;
        let clip = match (half, self.place) {
            (Parts::Encoder, Place::Host { .. }) => COLOURS * frames * height * width * WIDE,
            _ => 0, // in main memory, or made piece by piece
        };
        let peak_bytes = most.saturating_add(clip as u64);
        Ok(Memory {
            peak_bytes,
            host_bytes: self.on_host(peak_bytes),
        })
    }
}
