//! `WanAttentionBlock`: attention between the pixels of each frame, x + proj(attention(to_qkv(norm(x)))), with one
//! head.
//!
//! Letters: B batch, F frames, H rows, W columns, C channels, S pixels of a frame.

use candle_core::{Result, Tensor};

use super::norm::Norm;
use crate::nn::Weights;
use crate::nn::coder::Layer;
use crate::nn::conv3d::{Conv3d, FeatureCache, Geometry};
use crate::ops::attention::attention;

pub struct Attention {
    norm: Norm,
    to_qkv: Conv3d,
    proj: Conv3d,
}

impl Attention {
    pub fn load(channels: usize, weights: Weights) -> Result<Self> {
        let conv = |outputs, name| Conv3d::load(channels, outputs, Geometry::POINTWISE, true, weights.pp(name));
        Ok(Self {
            norm: Norm::load(channels, 2, weights.pp("norm"))?,
            to_qkv: conv(3 * channels, "to_qkv")?,
            proj: conv(channels, "proj")?,
        })
    }
}

impl Layer<()> for Attention {
    /// Forward pass (B, F, H, W, C) -> (B, F, H, W, C)
    fn forward(&self, x: Tensor, _memory: &mut FeatureCache, _state: &mut ()) -> Result<Tensor> {
        let (batch, frames, height, width, channels) = x.dims5()?;
        let rows = self.norm.rows(&x)?.reshape(x.shape())?;
        let qkv = self.to_qkv.forward((&rows).into())?.0; // (B, F, H, W, 3 C)
        let qkv = qkv.reshape((batch * frames, height * width, 3, channels))?;
        let part = |i: usize| qkv.narrow(2, i, 1); // (B F, S, 1, C)
        let seen = attention(&part(0)?, &part(1)?, &part(2)?, None)?; // (B F, S, 1, C)
        let seen = seen.reshape(x.shape())?;
        Ok(self.proj.forward_onto(x, (&seen).into())?.0)
    }
}
