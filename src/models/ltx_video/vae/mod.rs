//! `AutoencoderKLLTXVideo`: clips to latents of 1/8 the frames and 1/32 the size, and back.  arXiv:2501.00103
//!
//! A clip of 8 k + 1 frames becomes k + 1 latent frames. Samples of a batch are processed one by one, which needs the
//! least memory.
//!
//! Letters: B batch, C colours, F frames, H rows, W columns, L channels of latents; f, h, w the latents' size; p the
//! patch size.

mod coder;
mod config;
mod norm;
mod resample;
mod resnet;

use anyhow::Context;
use candle_core::{DType, Device, Result, Tensor, bail};

pub use crate::models::latent_norm::LatentNorm;
pub use crate::models::vae::Parts;
pub use config::{Config, DownBlockType, DownsampleType};

use coder::Coder;

use crate::diffusion::posterior::Posterior;
use crate::models::vae::{Placement, check_clip, check_latents, loaded, per_sample};
use crate::nn::shuffle::{into_patches, out_of_patches};
use crate::nn::weights::Reading;
use crate::nn::{WeightFolder, Weights};
use crate::rng::Rng;

/// Autoencoder, or half of it.
pub struct Vae {
    /// Settings of the checkpoint.
    pub config: Config,
    /// Mean and standard deviation by channel.
    pub statistics: LatentNorm,
    encoder: Option<Coder>,
    decoder: Option<Coder>,
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
        let place = Placement::new(&weights);
        let weights = weights.to_dtype(place.computed_in);
        weights.ensure_memory(half.unused())?;
        let statistics = LatentNorm::new(config.latent_channels, config.scaling_factor, &weights)
            .with_context(|| format!("{}: the normalisation of latents", folder.display()))?;
        let encoder = half.encoder(|| Coder::encoder(&config, weights.pp("encoder")))?;
        let decoder = half.decoder(|| Coder::decoder(&config, weights.pp("decoder")))?;
        weights.finish(half.unused())?;
        Ok(Self {
            config,
            statistics,
            encoder,
            decoder,
            place,
        })
    }

    /// Encodes a clip (B, C, F, H, W) of values in -1..1. All channels of a pixel share one log-variance.
    pub fn encode(&self, video: &Tensor) -> Result<Posterior> {
        let encoder = loaded(&self.encoder, "encoder")?;
        let compression = [self.config.temporal_compression(), self.config.spatial_compression()];
        check_clip(video, self.config.in_channels, compression)?;
        let p = self.config.patch_size;
        let moments = per_sample(video, |video| {
            let patches = into_patches(video, p, |x| self.place.received(x))?; // (1, F, H, W, C p p)
            let y = encoder.forward(patches, None, &mut Rng::new(0))?; // (1, f, h, w, L + 1); it draws nothing
            y.permute((0, 4, 1, 2, 3))?.to_dtype(self.place.dtype)
        })?; // (B, L + 1, f, h, w)
        let latent_channels = self.config.latent_channels;
        let logvar = moments.narrow(1, latent_channels, 1)?;
        let others = logvar.repeat((1, latent_channels - 1, 1, 1, 1))?;
        Posterior::new(&Tensor::cat(&[&moments, &others], 1)?)
    }

    /// Decodes latents (B, L, f, h, w), not normalised, as from the encoder, to (B, C, F, H, W) of about -1..1.
    ///
    /// A decoder with `timestep_conditioning` needs the noise level of each sample, (B) in 0..1; others take none. One
    /// with `decoder_inject_noise` draws from `rng`, in torch's order; every sample gets the same numbers.
    pub fn decode(&self, latents: &Tensor, timesteps: Option<&Tensor>, rng: &mut Rng) -> Result<Tensor> {
        let decoder = loaded(&self.decoder, "decoder")?;
        check_latents(latents, self.config.latent_channels)?;
        let (batch, _, frames, _, _) = latents.dims5()?;
        if let Some(timesteps) = timesteps
            && timesteps.dims() != [batch]
        {
            bail!("{batch} timesteps were expected, not {:?}", timesteps.dims());
        }
        let start = rng.clone();
        let mut samples = 0..batch;
        per_sample(latents, |latents| {
            *rng = start.clone();
            let timestep = timesteps.zip(samples.next()).map(|(timesteps, sample)| {
                let timestep = timesteps.narrow(0, sample, 1)?;
                timestep.to_device(&self.place.device)
            });
            let z = self.place.channels_last(latents, 0..frames)?; // (1, f, h, w, L)
            let y = decoder.forward(z, timestep.transpose()?.as_ref(), rng)?; // (1, F, H, W, C p p)
            out_of_patches(&y, self.config.patch_size, |x| x.to_dtype(self.place.dtype))
        })
    }
}
