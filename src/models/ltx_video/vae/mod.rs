//! `AutoencoderKLLTXVideo`: clips to latents of 1/8 the frames and 1/32 the size, and back.  arXiv:2501.00103
//!
//! A clip of 8 k + 1 frames becomes k + 1 frames of latents. Samples of a batch are coded one by one: what they need
//! then is the least.
//!
//! Letters: B batch, C colours, F frames, H rows, W columns, L channels of latents; f, h, w the latents' size; p the
//! patch size.

mod config;
mod conv;
mod decoder;
mod encoder;
mod resample;
mod resnet;
mod statistics;
mod time;

use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Device, Result, Tensor, bail};

pub use config::{Config, DownBlockType, DownsampleType};
pub use statistics::Statistics;

use decoder::Decoder;
use encoder::Encoder;

use crate::diffusion::posterior::Posterior;
use crate::nn::Weights;
use crate::rng::Rng;

/// The autoencoder, or half of it.
pub struct Vae {
    pub config: Config,
    encoder: Option<Encoder>,
    decoder: Option<Decoder>,
    pub statistics: Statistics,
    dtype: DType,
    device: Device,
}

/// What is to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Both,
    Encoder,
    Decoder,
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
        let weights = Weights::open(folder, computed_in(dtype, device), device)?;
        let (encodes, decodes) = (half != Half::Decoder, half != Half::Encoder);
        let statistics = Statistics::new(&config, &weights)
            .with_context(|| format!("{}: how latents are normalised", folder.display()))?;
        let vae = Self {
            encoder: encodes
                .then(|| Encoder::load(&config, weights.pp("encoder")))
                .transpose()
                .context("the VAE's encoder")?,
            decoder: decodes
                .then(|| Decoder::load(&config, weights.pp("decoder")))
                .transpose()
                .context("the VAE's decoder")?,
            statistics,
            dtype,
            device: device.clone(),
            config,
        };
        weights.finish(match half {
            Half::Both => &[],
            Half::Encoder => &["decoder."],
            Half::Decoder => &["encoder."],
        })?;
        Ok(vae)
    }

    /// How many pixels in a row become one.
    pub fn spatial_compression(&self) -> usize {
        self.config.spatial_compression()
    }

    /// How many frames become one, after the first.
    pub fn temporal_compression(&self) -> usize {
        self.config.temporal_compression()
    }

    pub fn latent_channels(&self) -> usize {
        self.config.latent_channels
    }

    /// Encodes a clip (B, C, F, H, W) of values in -1..1. All channels of a pixel have one log-variance.
    pub fn encode(&self, video: &Tensor) -> Result<Posterior> {
        let Some(encoder) = &self.encoder else {
            bail!("the VAE was loaded without its encoder");
        };
        let (batch, channels, frames, height, width) = video.dims5()?;
        let (spatial, temporal) = (self.spatial_compression(), self.temporal_compression());
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
                let y = encoder.forward(self.patches(&video.get(sample)?)?)?; // (1, f, h, w, L + 1)
                y.permute((0, 4, 1, 2, 3))?.to_dtype(self.dtype)
            })
            .collect::<Result<Vec<_>>>()?;
        let moments = Tensor::cat(&moments, 0)?; // (B, L + 1, f, h, w)
        let latent_channels = self.latent_channels();
        let logvar = moments.narrow(1, latent_channels, 1)?;
        let others = logvar.repeat((1, latent_channels - 1, 1, 1, 1))?;
        Posterior::new(&Tensor::cat(&[&moments, &others], 1)?)
    }

    /// Decodes latents (B, L, f, h, w) as the encoder gave them, not normalised, to (B, C, F, H, W) of about -1..1.
    ///
    /// A decoder with `timestep_conditioning` must be told how much noise each sample has, (B) in 0..1; another must not.
    /// One with `decoder_inject_noise` draws from `rng`, in torch's order; every sample gets the same numbers.
    pub fn decode(&self, latents: &Tensor, timesteps: Option<&Tensor>, rng: &mut Rng) -> Result<Tensor> {
        let Some(decoder) = &self.decoder else {
            bail!("the VAE was loaded without its decoder");
        };
        let (batch, channels, frames, height, width) = latents.dims5()?;
        if channels != self.latent_channels() || batch * frames * height * width == 0 {
            bail!(
                "latents (B, {}, f, h, w) were expected, not {:?}",
                self.latent_channels(),
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
                    .map(|timesteps| timesteps.narrow(0, sample, 1)?.to_device(&self.device))
                    .transpose()?;
                let y = decoder.forward(&self.received(&z)?, timestep.as_ref(), rng)?;
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
        self.received(&patches)?
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
            .to_dtype(self.dtype)?
            .reshape((1, channels, frames, height * p, width * p))
    }

    /// A tensor in what is computed in, and where.
    fn received(&self, x: &Tensor) -> Result<Tensor> {
        let dtype = computed_in(self.dtype, &self.device);
        x.to_device(&self.device)?.to_dtype(dtype)?.contiguous()
    }
}

/// The CPU computes in f32 whatever is asked for.
fn computed_in(dtype: DType, device: &Device) -> DType {
    if device.is_cpu() { DType::F32 } else { dtype }
}
