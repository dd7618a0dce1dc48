//! `torch.nn.GroupNorm`, channels last: `(x - mean) / sqrt(variance + eps) * weight + bias`, with mean and variance over a
//! group of channels and all frames, rows and columns that it sees, or those of each frame (`MochiChunkedGroupNorm3D`).
//!
//! As tables of `x * scale + shift`, which the next convolution applies to its input with a SiLU: scale = weight /
//! sqrt(variance + eps), shift = bias - mean * scale. They are f32 for any input type: `shift` mostly subtracts the mean,
//! and a narrower type would lose the remainder in rounding.
//!
//! Shapes: B batch, F frames, H rows, W columns, C channels, G groups.

use candle_core::{DType, Result, Tensor};

use super::coder::Modulate;
use super::conv3d::{Modulation, STACK, group_moments};
use super::weights::Weights;

/// Frames that a mean and a variance are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormedFrames {
    /// All of them.
    All,
    /// Each alone, as where frames are a batch of pictures.
    Each,
    /// All of them, the first and the last one counted twice: those of a clip that is padded by repeats of its ends.
    EndsTwice,
}

/// Group norm.
pub struct GroupNorm {
    weight: Tensor, // (C) f32
    bias: Tensor,   // (C) f32
    groups: usize,
    eps: f64,
    frames: NormedFrames,
}

impl GroupNorm {
    /// Reads `weight` and `bias`.
    pub fn load(channels: usize, groups: usize, eps: f64, weights: Weights) -> Result<Self> {
        let weights = weights.to_dtype(DType::F32);
        Ok(Self {
            weight: weights.get(channels, "weight")?,
            bias: weights.get(channels, "bias")?,
            groups,
            eps,
            frames: NormedFrames::All,
        })
    }

    /// Sets the frames that a mean and a variance are of.
    pub fn over(self, frames: NormedFrames) -> Self {
        Self { frames, ..self }
    }

    /// Returns mean and variance of x (B, F, H, W, C), both (B F', G), and F', the number of frames that have their own.
    fn moments(&self, x: &Tensor) -> Result<(Tensor, Tensor, usize)> {
        let frames = x.dim(1)?;
        match self.frames {
            NormedFrames::All => {
                let (mean, variance) = group_moments(x, self.groups)?;
                Ok((mean, variance, 1))
            }
            NormedFrames::Each => {
                let (mean, variance) = self.moments_of_frames(x)?;
                Ok((mean, variance, frames))
            }
            NormedFrames::EndsTwice => {
                let of = |first, count| group_moments(&x.narrow(1, first, count)?.contiguous()?, self.groups);
                let (mean, variance) = pooled([(of(0, frames)?, frames), (of(0, 1)?, 1), (of(frames - 1, 1)?, 1)])?;
                Ok((mean, variance, 1))
            }
        }
    }

    /// Returns scale and shift for x (B, F, H, W, C), both (B, F', 1, 1, C) f32.
    pub fn tables(&self, x: &Tensor) -> Result<[Tensor; 2]> {
        let (batch, channels) = (x.dim(0)?, x.dim(4)?);
        let (mean, variance, frames) = self.moments(x)?; // (B F', G)
        let per_channel = |values: &Tensor| {
            values
                .unsqueeze(2)?
                .repeat((1, 1, channels / self.groups))?
                .reshape((batch, frames, 1, 1, channels))
        };
        let parameter = |values: &Tensor| values.reshape((1, 1, 1, 1, channels));
        let scale = per_channel(&(variance + self.eps)?.sqrt()?.recip()?)?.broadcast_mul(&parameter(&self.weight)?)?;
        let shift = parameter(&self.bias)?.broadcast_sub(&(per_channel(&mean)? * &scale)?)?;
        Ok([scale, shift])
    }

    /// Returns the moments of every frame, both (B F, G), from so many frames at a time that a copy of them is small.
    fn moments_of_frames(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (batch, frames, height, width, channels) = x.dims5()?;
        let x = x.contiguous()?.reshape((batch * frames, 1, height, width, channels))?;
        let together = (STACK / (height * width * channels).max(1)).max(1);
        let parts = (0..batch * frames).step_by(together).map(|first| {
            let count = together.min(batch * frames - first);
            group_moments(&x.narrow(0, first, count)?, self.groups)
        });
        let (means, variances): (Vec<_>, Vec<_>) = parts.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        Ok((Tensor::cat(&means, 0)?, Tensor::cat(&variances, 0)?))
    }

    /// Forward pass (B, F, H, W, C) -> (B, F, H, W, C), without a SiLU.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [scale, shift] = &self.tables(x)?;
        scaled(x, [scale, shift])
    }
}

/// Applies tables of scale and shift to x (B, F, H, W, C), without a SiLU.
pub fn scaled(x: &Tensor, [scale, shift]: [&Tensor; 2]) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?.broadcast_mul(scale)?.broadcast_add(shift)?;
    wide.to_dtype(x.dtype())
}

/// Mean and variance of so many frames.
type OfFrames = ((Tensor, Tensor), usize);

/// Returns mean and variance of parts together: the mean of their means, and of variances and squared distances of means.
fn pooled(parts: [OfFrames; 3]) -> Result<(Tensor, Tensor)> {
    let all: usize = parts.iter().map(|(_, frames)| frames).sum();
    let share = |frames: &usize| *frames as f64 / all as f64;
    let zeros = parts[0].0.0.zeros_like()?;
    let mean = parts
        .iter()
        .try_fold(zeros.clone(), |sum, ((mean, _), frames)| sum + (mean * share(frames))?)?;
    let variance = parts.iter().try_fold(zeros, |sum, ((part, variance), frames)| {
        sum + ((variance + (part - &mean)?.sqr()?)? * share(frames))?
    })?;
    Ok((mean, variance))
}

impl<S> Modulate<S> for GroupNorm {
    fn modulation(&self, x: &Tensor, _state: &S) -> Result<Modulation> {
        let [scale, shift] = self.tables(x)?;
        let rms_eps = None;
        Ok(Modulation { scale, shift, rms_eps })
    }
}
