//! `WanResidualBlock`: x + conv2(silu(norm2(conv1(silu(norm1(x)))))), x through a 1x1x1 convolution where the number of
//! channels changes.

use candle_core::{Result, Tensor};

use super::norm::Norm;
use crate::nn::Weights;
use crate::nn::conv3d::{Conv3d, Memory};

pub struct Resnet {
    norm1: Norm,
    conv1: Conv3d,
    norm2: Norm,
    conv2: Conv3d,
    conv_shortcut: Option<Conv3d>,
}

impl Resnet {
    pub fn load(channels: usize, outputs: usize, weights: Weights) -> Result<Self> {
        let shortcut = || Conv3d::pointwise(channels, outputs, weights.pp("conv_shortcut"));
        Ok(Self {
            norm1: Norm::load(channels, 3, weights.pp("norm1"))?,
            conv1: Conv3d::causal(channels, outputs, weights.pp("conv1"))?,
            norm2: Norm::load(outputs, 3, weights.pp("norm2"))?,
            conv2: Conv3d::causal(outputs, outputs, weights.pp("conv2"))?,
            conv_shortcut: (channels != outputs).then(shortcut).transpose()?,
        })
    }

    /// (B, F, H, W, C) -> (B, F, H, W, O). Takes x, because the result may be built in its place.
    pub fn forward(&self, x: Tensor, memory: &mut Memory) -> Result<Tensor> {
        let h = memory.convolve(&self.conv1, &x, Some(&self.norm1.modulation(&x)?))?;
        let onto = match &self.conv_shortcut {
            Some(conv) => conv.forward((&x).into())?.0,
            None => x.clone(),
        };
        drop(x);
        memory.convolve_onto(onto, &self.conv2, &h, &self.norm2.modulation(&h)?)
    }
}
