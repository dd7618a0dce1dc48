//! `CogVideoXResnetBlock3D`: x + conv2(silu(norm2(conv1(silu(norm1(x)))))), x through a 1x1x1 convolution where the
//! number of channels changes.

use candle_core::{Result, Tensor};

use super::norm::Norm;
use crate::nn::Weights;
use crate::nn::conv3d::{Conv3d, Memory};

/// How a coder normalises.
#[derive(Debug, Clone, Copy)]
pub struct Norms {
    pub groups: usize,
    pub eps: f64,
    /// The decoder's norms look at the latents, which have so many channels.
    pub latent_channels: Option<usize>,
}

impl Norms {
    pub fn load(&self, channels: usize, weights: Weights) -> Result<Norm> {
        match self.latent_channels {
            Some(latent_channels) => Norm::spatial(channels, latent_channels, self.groups, weights),
            None => Norm::group(channels, self.groups, self.eps, weights),
        }
    }
}

pub struct Resnet {
    norm1: Norm,
    conv1: Conv3d,
    norm2: Norm,
    conv2: Conv3d,
    conv_shortcut: Option<Conv3d>,
}

impl Resnet {
    pub fn load(channels: usize, outputs: usize, norms: Norms, weights: Weights) -> Result<Self> {
        let shortcut = || Conv3d::pointwise(channels, outputs, weights.pp("conv_shortcut"));
        Ok(Self {
            norm1: norms.load(channels, weights.pp("norm1"))?,
            conv1: Conv3d::causal(channels, outputs, weights.pp("conv1.conv"))?,
            norm2: norms.load(outputs, weights.pp("norm2"))?,
            conv2: Conv3d::causal(outputs, outputs, weights.pp("conv2.conv"))?,
            conv_shortcut: (channels != outputs).then(shortcut).transpose()?,
        })
    }

    /// (B, F, H, W, C) -> (B, F, H, W, O). Takes x, because the result may be built in its place.
    pub fn forward(&self, x: Tensor, latents: Option<&Tensor>, memory: &mut Memory) -> Result<Tensor> {
        let norm1 = self.norm1.modulation(&x, latents)?;
        let h = memory.convolve(&self.conv1, &x, Some(&norm1))?;
        let onto = match &self.conv_shortcut {
            Some(conv) => conv.forward((&x).into())?.0,
            None => x.clone(),
        };
        drop(x);
        let norm2 = self.norm2.modulation(&h, latents)?;
        memory.convolve_onto(onto, &self.conv2, &h, &norm2)
    }
}
