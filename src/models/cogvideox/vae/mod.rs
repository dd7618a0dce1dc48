//! `AutoencoderKLCogVideoX`: clips to latents of 1/4 the frames and 1/8 the size, and back.  arXiv:2408.06072
//!
//! A clip is processed a few frames at a time (8 of pixels, 2 of latents; the first batch takes the remainder too), and
//! the causal convolutions cache the previous frames. Group norms see one such batch, so its size is part of the model.
//!
//! Letters: B batch, C colours, F frames, H rows, W columns, L channels of latents; f, h, w the latents' size.

mod config;
mod decoder;
mod encoder;
mod norm;
mod resample;

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

pub use crate::models::tiling::Tiling;
pub use crate::models::vae::Parts;
pub use config::Config;

use decoder::Decoder;
use encoder::Encoder;

use crate::diffusion::posterior::Posterior;
use crate::models::vae::{Placement, cat_frames, check_clip, check_latents, loaded, per_sample};
use crate::nn::conv3d::{Conv3d, FeatureCache, TemporalPadding};
use crate::nn::weights::Reading;
use crate::nn::{WeightFolder, Weights};

/// Frames of a batch.
const SAMPLE_FRAMES: usize = 8;
const LATENT_FRAMES: usize = 2;

/// Autoencoder, or half of it.
pub struct Vae {
    /// Settings of the checkpoint.
    pub config: Config,
    /// Tiles for frames larger than a tile; if None every frame is processed whole.
    pub tiling: Option<Tiling>,
    /// True to process one sample of a batch at a time.
    pub slicing: bool,
    encoder: Option<Encoder>,
    decoder: Option<Decoder>,
    quant_conv: Option<Conv3d>,
    post_quant_conv: Option<Conv3d>,
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
        let (encodes, decodes) = (half != Parts::Decoder, half != Parts::Encoder);
        let point = |wanted: bool, channels: usize, name: &str| {
            wanted
                .then(|| Conv3d::pointwise(channels, channels, weights.pp(name)))
                .transpose()
        };
        let vae = Self {
            tiling: None,
            slicing: false,
            encoder: half.encoder(|| Encoder::load(&config, weights.pp("encoder")))?,
            decoder: half.decoder(|| Decoder::load(&config, weights.pp("decoder")))?,
            quant_conv: point(encodes && config.use_quant_conv, 2 * config.out_channels, "quant_conv")?,
            post_quant_conv: point(
                decodes && config.use_post_quant_conv,
                config.out_channels,
                "post_quant_conv",
            )?,
            place: Placement::new(&weights),
            config,
        };
        weights.finish(half.unused())?;
        Ok(vae)
    }

    /// Returns the tiles of diffusers' `enable_tiling()`.
    pub fn default_tiling(&self) -> Tiling {
        Tiling::for_sample(self.config.sample_height, self.config.sample_width)
    }

    /// Encodes a clip (B, C, F, H, W) of values in -1..1.
    pub fn encode(&self, video: &Tensor) -> Result<Posterior> {
        let encoder = loaded(&self.encoder, "encoder")?;
        check_clip(video, self.config.in_channels, [1, 1])?;
        let (_, _, _, height, width) = video.dims5()?;
        let grid = self
            .tiling
            .map(|tiling| tiling.encoding(self.config.spatial_compression()));
        let moments = self.slices(video, |video| match grid {
            Some(grid) if grid.splits(height, width) => grid.code(video, |tile| self.encode_whole(encoder, tile)),
            _ => self.encode_whole(encoder, video),
        })?;
        Posterior::new(&moments)
    }

    /// Decodes latents (B, L, f, h, w), unscaled as from the encoder, to (B, C, F, H, W) of about -1..1.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.slices(latents, |latents| {
            let mut batches = Vec::new();
            self.decode_batches(latents, |frames| {
                batches.push(frames);
                Ok::<_, candle_core::Error>(())
            })?;
            cat_frames(&batches)
        })
    }

    /// Same as [`Vae::decode`] for all samples at once, emitting frames as they come: 8 at a time, the remainder with
    /// the first. In tiles, all frames come at the end: to cache every tile's past would cost more memory than the
    /// tiles save.
    pub fn decode_batches<E: From<candle_core::Error>>(
        &self,
        latents: &Tensor,
        mut emit: impl FnMut(Tensor) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let (decoder, height, width) = self.check_latents(latents)?;
        let grid = self
            .tiling
            .map(|tiling| tiling.decoding(self.config.spatial_compression()));
        if let Some(grid) = grid
            && grid.splits(height, width)
        {
            let whole = grid.code(latents, |tile| {
                let mut memory = FeatureCache::new(TemporalPadding::First);
                let batches = batches(tile.dim(2)?, LATENT_FRAMES)
                    .map(|frames| self.decode_batch(decoder, tile, frames, &mut memory))
                    .collect::<Result<Vec<_>>>()?;
                cat_frames(&batches)
            })?;
            return emit(whole);
        }
        let mut memory = FeatureCache::new(TemporalPadding::First);
        for frames in batches(latents.dim(2).map_err(E::from)?, LATENT_FRAMES) {
            emit(self.decode_batch(decoder, latents, frames, &mut memory)?)?;
        }
        Ok(())
    }

    fn check_latents(&self, latents: &Tensor) -> Result<(&Decoder, usize, usize)> {
        let decoder = loaded(&self.decoder, "decoder")?;
        check_latents(latents, self.config.latent_channels)?;
        let (_, _, _, height, width) = latents.dims5()?;
        Ok((decoder, height, width))
    }

    fn encode_whole(&self, encoder: &Encoder, video: &Tensor) -> Result<Tensor> {
        let mut memory = FeatureCache::new(TemporalPadding::First);
        let mut moments = Vec::new();
        for frames in batches(video.dim(2)?, SAMPLE_FRAMES) {
            let x = self.place.channels_last(video, frames)?; // (B, F, H, W, C)
            let mut y = encoder.forward(&x, &mut memory)?; // (B, f, h, w, 2 L)
            if let Some(conv) = &self.quant_conv {
                y = conv.forward((&y).into())?.0;
            }
            moments.push(self.place.channels_first(&y)?);
        }
        cat_frames(&moments)
    }

    fn decode_batch(
        &self,
        decoder: &Decoder,
        latents: &Tensor,
        frames: Range<usize>,
        memory: &mut FeatureCache,
    ) -> Result<Tensor> {
        let mut z = self.place.channels_last(latents, frames)?; // (B, f, h, w, L)
        if let Some(conv) = &self.post_quant_conv {
            z = conv.forward((&z).into())?.0;
        }
        self.place.channels_first(&decoder.forward(&z, memory)?)
    }

    /// Processes a batch sample by sample, if configured.
    fn slices(&self, x: &Tensor, code: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        if !self.slicing || x.dim(0)? < 2 {
            return code(x);
        }
        per_sample(x, code)
    }
}

/// Cuts a clip into batches of `size` frames; the first one includes the remainder.
fn batches(frames: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let count = (frames / size).max(1);
    let rest = frames - (frames / size).min(count) * size;
    (0..count).map(move |batch| match batch {
        0 => 0..frames.min(size + rest),
        _ => batch * size + rest..(batch + 1) * size + rest,
    })
}
