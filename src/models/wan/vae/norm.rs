//! `WanRMS_norm`: x / max(|x|, 1e-12) * sqrt(C) * gamma over the channels of every pixel, which is an RMS norm. Mostly
//! the next convolution applies it to its input, with the SiLU that follows.
//!
//! Letters: B batch, F frames, H rows, W columns, C channels.

use candle_core::{DType, Result, Tensor};

use crate::nn::Weights;
use crate::nn::coder::Modulate;
use crate::nn::conv3d::Modulation;
use crate::ops::norm::{Norm as RmsNorm, NormKind};

pub struct Norm {
    gamma: Tensor, // (1, 1, 1, 1, C) f32
    eps: f64,
}

impl Norm {
    /// Reads `gamma`, which has as many axes after the channels as a clip (3) or an image (2).
    pub fn load(channels: usize, axes: usize, weights: Weights) -> Result<Self> {
        let shape = [vec![channels], vec![1; axes]].concat();
        let gamma = weights.to_dtype(DType::F32).get(shape, "gamma")?;
        Ok(Self {
            gamma: gamma.reshape((1, 1, 1, 1, channels))?,
            eps: 1e-24 / channels as f64, // (1e-12)^2, divided like the sum of squares
        })
    }

    /// Computes norm(x), (B, F, H, W, C) -> (B F, H W, C)
    pub fn rows(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, frames, height, width, channels) = x.dims5()?;
        let norm = RmsNorm {
            kind: NormKind::Rms,
            eps: self.eps,
            parts: vec![height * width],
        };
        let gain = self.gamma.reshape((1, 1, channels))?;
        let x = x.reshape((batch * frames, height * width, channels))?;
        norm.forward(&x, &gain, &gain.zeros_like()?)
    }
}

impl Modulate<()> for Norm {
    fn modulation(&self, x: &Tensor, _state: &()) -> Result<Modulation> {
        Modulation::rms(x, self.eps, &self.gamma, None)
    }
}
