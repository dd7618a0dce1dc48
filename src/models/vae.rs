//! Shared parts of the video autoencoders: choice of halves, checks of clips and latents, device and type of the
//! computation.
//!
//! Shapes: B samples, C channels, F frames, H rows, W columns, p the size of a patch.

use std::ops::Range;

use anyhow::Context;
use candle_core::{DType, Device, Result, Tensor, bail};

use crate::nn::Weights;
use crate::nn::shuffle::{into_patches, out_of_patches};

/// Result of something that emits frames to a callback with errors `E`.
pub type Emitted<E> = std::result::Result<(), E>;

/// Halves to load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Encoder and decoder.
    Both,
    /// The encoder alone.
    Encoder,
    /// The decoder alone.
    Decoder,
}

impl Parts {
    /// Loads the encoder, if needed.
    pub fn encoder<T>(self, load: impl FnOnce() -> Result<T>) -> anyhow::Result<Option<T>> {
        let wanted = (self != Self::Decoder).then(load);
        wanted.transpose().context("the VAE's encoder")
    }

    /// Loads the decoder, if needed.
    pub fn decoder<T>(self, load: impl FnOnce() -> Result<T>) -> anyhow::Result<Option<T>> {
        let wanted = (self != Self::Encoder).then(load);
        wanted.transpose().context("the VAE's decoder")
    }

    /// Returns the prefixes of tensors that are not loaded.
    pub fn unused(self) -> &'static [&'static str] {
        match self {
            Self::Both => &[],
            Self::Encoder => &["decoder.", "post_quant_conv."],
            Self::Decoder => &["encoder.", "quant_conv."],
        }
    }
}

/// Returns a half that must be loaded.
pub fn loaded<'a, T>(half: &'a Option<T>, name: &str) -> Result<&'a T> {
    match half {
        Some(half) => Ok(half),
        None => bail!("the VAE was loaded without its {name}"),
    }
}

/// First frame of a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstFrame {
    /// It is a latent frame by itself: clips have a multiple of some frames, and one more.
    Alone,
    /// It is one of a latent frame's, as every other: clips have a multiple of some frames.
    Grouped,
}

impl FirstFrame {
    /// Returns the frames of a clip of some latent frames, of so many frames each.
    pub fn clip(self, latent_frames: usize, each: usize) -> usize {
        match self {
            Self::Alone => latent_frames.saturating_sub(1) * each + 1,
            Self::Grouped => latent_frames * each,
        }
    }

    /// Returns the latent frames that a clip of so many frames fills, or begins.
    pub fn latents(self, frames: usize, each: usize) -> usize {
        match self {
            Self::Alone => frames.saturating_sub(1).div_ceil(each.max(1)) + 1,
            Self::Grouped => frames.div_ceil(each.max(1)),
        }
    }
}

/// Checks for a clip (B, `channels`, F, H, W) of `temporal` n frames, or n + 1 by the first, with sides that are multiples of
/// `spatial`.
pub fn check_clip(video: &Tensor, channels: usize, first: FirstFrame, [temporal, spatial]: [usize; 2]) -> Result<()> {
    let (batch, found, frames, height, width) = video.dims5()?;
    if found != channels || batch * height * width == 0 {
        bail!("clips (B, {channels}, F, H, W) were expected, not {:?}", video.dims());
    }
    let of = match first {
        FirstFrame::Alone => format!("({temporal} n + 1)"),
        FirstFrame::Grouped => format!("({temporal} n)"),
    };
    if frames == 0 || first.clip(frames.div_ceil(temporal), temporal) != frames {
        let [first, second, third] = [1, 2, 3].map(|count| first.clip(count, temporal));
        bail!("the VAE encodes {first}, {second}, {third}, ... frames {of}, not {frames}");
    }
    if !height.is_multiple_of(spatial) || !width.is_multiple_of(spatial) {
        bail!("the VAE encodes sides that are multiples of {spatial}, not {height}x{width}");
    }
    Ok(())
}

/// Checks for latents (B, `channels`, f, h, w).
pub fn check_latents(latents: &Tensor, channels: usize) -> Result<()> {
    if latents.dims5()?.1 != channels || latents.elem_count() == 0 {
        bail!(
            "latents (B, {channels}, f, h, w) were expected, not {:?}",
            latents.dims()
        );
    }
    Ok(())
}

/// Device and types of an autoencoder: the CPU always computes in f32.
#[derive(Debug, Clone)]
pub struct Placement {
    /// Type of the result.
    pub dtype: DType,
    /// Device of computation and result.
    pub device: Device,
    /// Type of the computation.
    pub computed_in: DType,
    /// True if convolutions have kernels of their own.
    pub direct: bool,
}

impl Placement {
    /// Placement of an autoencoder with these weights, which determine the type.
    pub fn new(weights: &Weights) -> Self {
        let dtype = weights.dtype();
        Self {
            dtype,
            device: weights.device().clone(),
            computed_in: if weights.takes_cpu_kernels() { DType::F32 } else { dtype },
            direct: weights.takes_cpu_kernels(),
        }
    }

    /// Converts some frames of (B, C, F, p H, p W) to (B, F, H, W, C p p), in a type, or that of the computation.
    pub fn channels_last(&self, x: &Tensor, frames: Range<usize>, p: usize, dtype: Option<DType>) -> Result<Tensor> {
        let x = x.narrow(2, frames.start, frames.len())?.to_device(&self.device)?;
        into_patches(&x, p, |x| x.to_dtype(dtype.unwrap_or(self.computed_in))?.contiguous())
    }

    /// Converts (B, F, H, W, C p p) -> (B, C, F, p H, p W), to the type of the result.
    pub fn channels_first(&self, x: &Tensor, p: usize) -> Result<Tensor> {
        out_of_patches(x, p, |x| x.to_dtype(self.dtype))
    }
}

/// Processes a batch sample by sample, which needs the least memory.
pub fn per_sample(x: &Tensor, mut code: impl FnMut(usize, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let samples = (0..x.dim(0)?).map(|i| code(i, &x.narrow(0, i, 1)?));
    Tensor::cat(&samples.collect::<Result<Vec<_>>>()?, 0)
}
