//! What the video autoencoders share: halves that are loaded alone, where and in what they compute, pieces of clips.
//!
//! Letters: B batch, C channels, F frames, H rows, W columns.

use std::ops::Range;

use anyhow::Context;
use candle_core::{DType, Device, Result, Tensor, bail};

use crate::nn::weights::Reading;

/// What is to be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Both,
    Encoder,
    Decoder,
}

impl Half {
    /// The encoder, where it is wanted.
    pub fn encoder<T>(self, load: impl FnOnce() -> Result<T>) -> anyhow::Result<Option<T>> {
        let wanted = (self != Self::Decoder).then(load);
        wanted.transpose().context("the VAE's encoder")
    }

    /// The decoder, where it is wanted.
    pub fn decoder<T>(self, load: impl FnOnce() -> Result<T>) -> anyhow::Result<Option<T>> {
        let wanted = (self != Self::Encoder).then(load);
        wanted.transpose().context("the VAE's decoder")
    }

    /// What tensors begin with that are left in the file.
    pub fn unused(self) -> &'static [&'static str] {
        match self {
            Self::Both => &[],
            Self::Encoder => &["decoder.", "post_quant_conv."],
            Self::Decoder => &["encoder.", "quant_conv."],
        }
    }
}

/// A half that must be there.
pub fn loaded<'a, T>(half: &'a Option<T>, name: &str) -> Result<&'a T> {
    match half {
        Some(half) => Ok(half),
        None => bail!("the VAE was loaded without its {name}"),
    }
}

/// Refuses what is no clip (B, `channels`, F, H, W) of `temporal` n + 1 frames, with sides that are multiples of `spatial`.
pub fn check_clip(video: &Tensor, channels: usize, [temporal, spatial]: [usize; 2]) -> Result<()> {
    let (batch, found, frames, height, width) = video.dims5()?;
    if found != channels || batch * height * width == 0 {
        bail!("clips (B, {channels}, F, H, W) were expected, not {:?}", video.dims());
    }
    if frames == 0 || frames % temporal != 1 % temporal {
        let (second, third) = (temporal + 1, 2 * temporal + 1);
        bail!("the VAE encodes 1, {second}, {third}, ... frames ({temporal} n + 1), not {frames}");
    }
    if !height.is_multiple_of(spatial) || !width.is_multiple_of(spatial) {
        bail!("the VAE encodes sides that are multiples of {spatial}, not {height}x{width}");
    }
    Ok(())
}

/// Refuses what are no latents (B, `channels`, f, h, w).
pub fn check_latents(latents: &Tensor, channels: usize) -> Result<()> {
    if latents.dims5()?.1 != channels || latents.elem_count() == 0 {
        bail!(
            "latents (B, {channels}, f, h, w) were expected, not {:?}",
            latents.dims()
        );
    }
    Ok(())
}

/// Where an autoencoder computes, and what it gives: the CPU computes in f32 whatever is asked for.
#[derive(Debug, Clone)]
pub struct Place {
    pub dtype: DType,
    pub device: Device,
}

impl Place {
    /// The place of weights that are read so.
    pub fn of(reading: &Reading) -> Self {
        let Reading { dtype, device, .. } = reading.clone();
        Self { dtype, device }
    }

    /// What is computed in.
    pub fn computed_in(&self) -> DType {
        if self.device.is_cpu() { DType::F32 } else { self.dtype }
    }

    /// A tensor in what is computed in, and where.
    pub fn received(&self, x: &Tensor) -> Result<Tensor> {
        x.to_device(&self.device)?.to_dtype(self.computed_in())?.contiguous()
    }

    /// Some frames of (B, C, F, H, W) as (B, F, H, W, C), in what is computed in.
    pub fn channels_last(&self, x: &Tensor, frames: Range<usize>) -> Result<Tensor> {
        let x = x.narrow(2, frames.start, frames.len())?.to_device(&self.device)?;
        self.received(&x.permute((0, 2, 3, 4, 1))?)
    }

    /// (B, F, H, W, C) -> (B, C, F, H, W), in what is asked for.
    pub fn channels_first(&self, x: &Tensor) -> Result<Tensor> {
        x.permute((0, 4, 1, 2, 3))?.to_dtype(self.dtype)?.contiguous()
    }
}

/// Codes a batch sample by sample: what they need then is the least.
pub fn one_by_one(x: &Tensor, mut code: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let samples = (0..x.dim(0)?).map(|sample| code(&x.narrow(0, sample, 1)?));
    Tensor::cat(&samples.collect::<Result<Vec<_>>>()?, 0)
}

/// Pieces of a clip, (B, C, F, H, W), one behind the other.
pub fn joined(pieces: &[Tensor]) -> Result<Tensor> {
    Tensor::cat(pieces, 2)
}
