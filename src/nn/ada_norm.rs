//! Layer norms whose shift and scale are projected from the timestep, block by block (adaLN, arXiv:2212.09748). Equals
//! `AdaLayerNorm` with `chunk_dim` 1 and `CogVideoXLayerNormZero` of diffusers.
//!
//! Shapes: B samples, S tokens of text and video, N video tokens, D the model's width, T the time's.

use candle_core::{Result, Tensor};

use super::linear::{Linear, linear};
use super::norm::{Modulation, Norm};
use super::weights::Weights;
use crate::ops::activation::silu;

/// Layer norm with shift, scale and gate from the timestep, separate for text and video.
#[derive(Debug, Clone)]
pub struct AdaLayerNormZero {
    linear: Linear,
    norm: Norm,
}

impl AdaLayerNormZero {
    /// Reads `linear`, from `time_dim` to six times `dim`; the norm is `norm`.
    pub fn new([time_dim, dim]: [usize; 2], norm: Norm, weights: Weights) -> Result<Self> {
        Ok(Self {
            linear: linear(time_dim, 6 * dim, weights.pp("linear"))?,
            norm,
        })
    }

    /// Returns x (B, S, D), normed and modulated, and the gates of text and video, (B, 2, D).
    pub fn forward(&self, x: &Tensor, time: &Tensor, parts: &[usize]) -> Result<(Tensor, Tensor)> {
        let (batch, _, dim) = x.dims3()?;
        let both = self.linear.forward(&silu(time)?)?.reshape((batch, 2, 3, dim))?; // the video's come first
        let both = Tensor::cat(&[both.narrow(1, 1, 1)?, both.narrow(1, 0, 1)?], 1)?;
        let of = |what: usize| both.narrow(2, what, 1)?.squeeze(2); // (B, 2, D)
        let modulation = Modulation {
            shift: of(0)?,
            scale: of(1)?,
        };
        Ok((self.norm.modulated(x, &modulation, parts)?, of(2)?))
    }
}

/// Layer norm with shift and scale from the timestep.
#[derive(Debug, Clone)]
pub struct AdaLayerNorm {
    linear: Linear,
    norm: Norm,
}

impl AdaLayerNorm {
    /// Reads `linear`, from `time_dim` to twice `dim`; the norm is `norm`.
    pub fn new([time_dim, dim]: [usize; 2], norm: Norm, weights: Weights) -> Result<Self> {
        Ok(Self {
            linear: linear(time_dim, 2 * dim, weights.pp("linear"))?,
            norm,
        })
    }

    /// Forward pass (B, N, D), (B, T) -> (B, N, D)
    pub fn forward(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
        let (_, tokens, dim) = x.dims3()?;
        let both = self.linear.forward(&silu(time)?)?.unsqueeze(1)?; // (B, 1, 2 D)
        let modulation = Modulation {
            shift: both.narrow(2, 0, dim)?,
            scale: both.narrow(2, dim, dim)?,
        };
        self.norm.modulated(x, &modulation, &[tokens])
    }
}

/// Shifts, scales and gates from the timestep: `linear(silu(time))`, cut into K.
#[derive(Debug, Clone)]
pub struct TimeProjection<const K: usize> {
    linear: Linear,
}

impl<const K: usize> TimeProjection<K> {
    /// Reads `linear`, from `time_dim` to K times `dim`.
    pub fn new(time_dim: usize, dim: usize, weights: Weights) -> Result<Self> {
        Ok(Self {
            linear: linear(time_dim, K * dim, weights.pp("linear"))?,
        })
    }

    /// Forward pass (B, P, T) -> K times (B, P, D)
    pub fn forward(&self, time: &Tensor) -> Result<[Tensor; K]> {
        let all = self.linear.forward(&silu(time)?)?; // (B, P, K D)
        let parts = all.chunk(K, 2)?;
        Ok(parts.try_into().expect("the tensor falls into K"))
    }
}
