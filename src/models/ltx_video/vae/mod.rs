//! `AutoencoderKLLTXVideo`: clips to latents of 1/8 the frames and 1/32 the size, and back.  arXiv:2501.00103
//!
//! A clip of 8 k + 1 frames becomes k + 1 frames of latents. Samples of a batch are coded one by one: what they need
//! then is the least.
//!
//! Letters: B batch, C colours, F frames, H rows, W columns, L channels of latents; f, h, w the latents' size; p the
//! patch size.

mod coder;
mod config;
mod norm;
mod resample;
mod resnet;
mod statistics;

use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Device, Result, Tensor, bail};

pub use crate::models::vae::Half;
pub use config::{Config, DownBlockType, DownsampleType};
pub use statistics::Statistics;

use coder::Coder;

use crate::diffusion::posterior::Posterior;
use crate::models::vae::{Place, loaded};
use crate::nn::Weights;
use crate::rng::Rng;

/// The autoencoder, or half of it.
pub struct Vae {
    pub config: Config,
    pub statistics: Statistics,
    encoder: Option<Coder>,
    decoder: Option<Coder>,
    place: Place,
}

impl Vae {
    /// Reads `config.json` and the weights in `folder`.
    ///
    /// # Errors
    /// A config that says anything unknown or impossible; weights that do not fit it.
    pub fn load(folder: &Path, dtype: DType, device: &Device) -> anyhow::Result<Self> {
        Self::load_half(folder, Half::Both, dtype, device)
    }

    /// As [`Vae::load`], leaving out what is not needed.
    pub fn load_half(folder: &Path, half: Half, dtype: DType, device: &Device) -> anyhow::Result<Self> {
        let config = Config::read(folder)?;
        let device = device.clone();
        let place = Place { dtype, device };
        let weights = Weights::open(folder, place.computed_in(), &place.device)?;
        let statistics = Statistics::new(&config, &weights)
            .with_context(|| format!("{}: how latents are normalised", folder.display()))?;
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

    /// Encodes a clip (B, C, F, H, W) of values in -1..1. All channels of a pixel have one log-variance.
    pub fn encode(&self, video: &Tensor) -> Result<Posterior> {
        let encoder = loaded(&self.encoder, "encoder")?;
        let (batch, channels, frames, height, width) = video.dims5()?;
        let (spatial, temporal) = (self.config.spatial_compression(), self.config.temporal_compression());
        let sides = [height, width];
        if batch == 0
            || channels != self.config.in_channels
            || frames % temporal != 1 % temporal
            || sides.iter().any(|side| *side == 0 || !side.is_multiple_of(spatial))
        {
            bail!(
                "a clip (B, {}, F, H, W) of {temporal} k + 1 frames and with sides that are multiples of {spatial} was \
                 expected, not {:?}",
                self.config.in_channels,
                video.dims()
            );
        }
        let moments = (0..batch)
            .map(|sample| {
                let patches = self.patches(&video.get(sample)?)?;
                let y = encoder.forward(patches, None, &mut Rng::new(0))?; // (1, f, h, w, L + 1); it draws nothing
                y.permute((0, 4, 1, 2, 3))?.to_dtype(self.place.dtype)
            })
            .collect::<Result<Vec<_>>>()?;
        let moments = Tensor::cat(&moments, 0)?; // (B, L + 1, f, h, w)
        let latent_channels = self.config.latent_channels;
        let logvar = moments.narrow(1, latent_channels, 1)?;
        let others = logvar.repeat((1, latent_channels - 1, 1, 1, 1))?;
        Posterior::new(&Tensor::cat(&[&moments, &others], 1)?)
    }

    /// Decodes latents (B, L, f, h, w) as the encoder gave them, not normalised, to (B, C, F, H, W) of about -1..1.
    ///
    /// A decoder with `timestep_conditioning` must be told how much noise each sample has, (B) in 0..1; another must not.
    /// One with `decoder_inject_noise` draws from `rng`, in torch's order; every sample gets the same numbers.
    pub fn decode(&self, latents: &Tensor, timesteps: Option<&Tensor>, rng: &mut Rng) -> Result<Tensor> {
        let decoder = loaded(&self.decoder, "decoder")?;
        let (batch, channels, frames, height, width) = latents.dims5()?;
        if channels != self.config.latent_channels || batch * frames * height * width == 0 {
            bail!(
                "latents (B, {}, f, h, w) were expected, not {:?}",
                self.config.latent_channels,
                latents.dims()
            );
        }
        if let Some(timesteps) = timesteps
            && timesteps.dims() != [batch]
        {
            bail!("{batch} timesteps were expected, not {:?}", timesteps.dims());
        }
        let start = rng.clone();
        let clips = (0..batch)
            .map(|sample| {
                *rng = start.clone();
                let z = latents.narrow(0, sample, 1)?.permute((0, 2, 3, 4, 1))?; // (1, f, h, w, L)
                let timestep = timesteps
                    .map(|timesteps| timesteps.narrow(0, sample, 1)?.to_device(&self.place.device))
                    .transpose()?;
                let y = decoder.forward(self.place.received(&z)?, timestep.as_ref(), rng)?;
                self.pixels(&y)
            })
            .collect::<Result<Vec<_>>>()?;
        match clips.as_slice() {
            [one] => Ok(one.clone()),
            many => Tensor::cat(many, 0),
        }
    }

    /// (C, F, H p, W p) -> (1, F, H, W, C p p), of a patch's pixels the columns first.
    fn patches(&self, clip: &Tensor) -> Result<Tensor> {
        let p = self.config.patch_size;
        let (channels, frames, height, width) = clip.dims4()?;
        let (height, width) = (height / p, width / p);
        let patches = clip
            .reshape((channels, frames, height, p, width, p))?
            .permute((1, 2, 4, 0, 5, 3))?;
        self.place
            .received(&patches)?
            .reshape((1, frames, height, width, channels * p * p))
    }

    /// The inverse: (1, F, H, W, C p p) -> (1, C, F, H p, W p)
    fn pixels(&self, patches: &Tensor) -> Result<Tensor> {
        let p = self.config.patch_size;
        let (_, frames, height, width, channels) = patches.dims5()?;
        let channels = channels / (p * p);
        patches
            .reshape((frames, height, width, channels, p, p))?
            .permute((3, 0, 1, 5, 2, 4))?
            .to_dtype(self.place.dtype)?
            .reshape((1, channels, frames, height * p, width * p))
    }
}
