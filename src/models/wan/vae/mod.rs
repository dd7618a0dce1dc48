//! `AutoencoderKLWan` of Wan 2.1: clips to latents of 1/4 the frames and 1/8 the size, and back. arXiv:2503.20314
//!
//! The first frame of a clip is coded alone, all others by fours, which become one latent frame. A clip is processed
//! piece by piece, four frames or one latent frame at a time, and the causal convolutions cache the previous frames:
//! pieces give the same result as the whole clip, with the memory of one piece.
//!
//! Letters: B batch, F frames, H rows, W columns, L channels of latents; f, h, w the latents' size.

mod attention;
mod coder;
mod config;
mod norm;
mod resample;

use candle_core::{DType, Device, Result, Tensor};

pub use crate::models::vae::Parts;
pub use config::Config;

use coder::Coder;

use crate::diffusion::posterior::Posterior;
use crate::models::family::Emit;
use crate::models::vae::{Placement, cat_frames, check_clip, check_latents, loaded};
use crate::nn::conv3d::{Conv3d, FeatureCache, TemporalPadding};
use crate::nn::weights::Reading;
use crate::nn::{WeightFolder, Weights};

/// Frames of a piece, except the first, which has one.
const SAMPLE_FRAMES: usize = 4;

/// Autoencoder, or half of it.
pub struct Vae {
    /// Settings of the checkpoint.
    pub config: Config,
    /// Encoder with `quant_conv`.
    encoder: Option<(Coder, Conv3d)>,
    /// Decoder with `post_quant_conv`.
    decoder: Option<(Coder, Conv3d)>,
    place: Placement,
}

impl Vae {
    /// Reads `config.json` and the weights in `folder`.
    ///
    /// # Errors
    /// Fails for unknown or impossible settings, and for weights that do not fit them.
    pub fn load(folder: impl Into<WeightFolder>, dtype: DType, device: &Device) -> anyhow::Result<Self> {
        Self::load_half(folder, Parts::Both, &Reading::numbers(dtype, device))
    }

    /// Same as [`Vae::load`], without the unneeded half.
    pub fn load_half(folder: impl Into<WeightFolder>, half: Parts, reading: &Reading) -> anyhow::Result<Self> {
        let folder: &WeightFolder = &folder.into();
        Self::read(folder, half, Weights::read(folder, reading)?)
    }

    /// Same as [`Vae::load_half`], from weights of the same folder.
    pub fn read(folder: impl Into<WeightFolder>, half: Parts, weights: Weights) -> anyhow::Result<Self> {
        let folder: &WeightFolder = &folder.into();
        let config = Config::read(folder)?;
        weights.ensure_memory(half.unused())?;
        let point = |channels, name| Conv3d::pointwise(channels, channels, weights.pp(name));
        let (inner, latents) = (2 * config.z_dim, config.z_dim);
        let encoder = half.encoder(|| {
            Ok((
                Coder::encoder(&config, weights.pp("encoder"))?,
                point(inner, "quant_conv")?,
            ))
        })?;
        let decoder = half.decoder(|| {
            Ok((
                Coder::decoder(&config, weights.pp("decoder"))?,
                point(latents, "post_quant_conv")?,
            ))
        })?;
        weights.finish(half.unused())?;
        Ok(Self {
            config,
            encoder,
            decoder,
            place: Placement::new(&weights),
        })
    }

    /// Encodes clips (B, 3, F, H, W) of values in -1..1 to (B, L, f, h, w), where f = (F - 1) / 4 + 1.
    ///
    /// # Errors
    /// Fails for anything but 4 n + 1 frames, of which diffusers would drop the last ones.
    pub fn encode(&self, video: &Tensor) -> Result<Posterior> {
        let (encoder, quant_conv) = loaded(&self.encoder, "encoder")?;
        check_clip(video, self.config.in_channels, [SAMPLE_FRAMES, 1])?;
        let mut memory = FeatureCache::new(TemporalPadding::Zeros);
        let mut moments = Vec::new();
        for first in (0..video.dim(2)?).step_by(SAMPLE_FRAMES) {
            let piece = first.saturating_sub(SAMPLE_FRAMES - 1)..first + 1;
            let y = encoder.forward(&self.place.channels_last(video, piece)?, &mut memory)?; // (B, f, h, w, 2 L)
            moments.push(self.place.channels_first(&quant_conv.forward((&y).into())?.0)?);
        }
        Posterior::new(&cat_frames(&moments)?)
    }

    /// Decodes latents (B, L, f, h, w), not normalised, as from the encoder, to (B, 3, F, H, W) in -1..1, where F = 4
    /// (f - 1) + 1.
    pub fn decode(&self, latents: &Tensor) -> anyhow::Result<Tensor> {
        let mut pieces = Vec::new();
        self.decode_batches(latents, &mut |frames| {
            pieces.push(frames);
            Ok(())
        })?;
        Ok(cat_frames(&pieces)?)
    }

    /// Same as [`Vae::decode`], emitting frames as they come: the first, then four at a time.
    pub fn decode_batches(&self, latents: &Tensor, emit: Emit) -> anyhow::Result<()> {
        let (decoder, post_quant_conv) = loaded(&self.decoder, "decoder")?;
        check_latents(latents, self.config.z_dim)?;
        let mut memory = FeatureCache::new(TemporalPadding::Zeros);
        for frame in 0..latents.dim(2)? {
            let z = self.place.channels_last(latents, frame..frame + 1)?; // (B, 1, h, w, L)
            let z = post_quant_conv.forward((&z).into())?.0;
            let frames = decoder.forward(&z, &mut memory)?.clamp(-1f32, 1f32)?; // (B, F, H, W, 3)
            emit(self.place.channels_first(&frames)?)?;
        }
        Ok(())
    }
}
