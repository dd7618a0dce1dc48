//! Normalisation as a table of `x * scale + shift`, which the next convolution applies to its input.
//!
//! [`GroupNorm`] in the encoder. `CogVideoXSpatialNorm3D` in the decoder (arXiv:2209.09002): `norm(x) * y(z) + b(z)` where
//! y and b are 1x1x1 convolutions of the latents z upsampled to x. Upsampling by repetition commutes with them, so they are
//! computed at the latents' size, and only looked up at x's size.
//!
//! Letters: B batch, F frames, H rows, W columns, C channels; f, h, w, L the latents'.

use candle_core::{DType, Result, Tensor, bail};

use crate::nn::coder::Modulate;
use crate::nn::conv3d::{Conv3d, Modulation};
use crate::nn::group_norm::GroupNorm;
use crate::nn::{Resnet, Weights};

/// Group norm, modulated by the latents in the decoder.
pub struct Norm {
    group: GroupNorm,
    spatial: Option<Spatial>,
}

struct Spatial {
    conv_y: Conv3d,
    conv_b: Conv3d,
}

impl Norm {
    /// Reads `weight` and `bias`.
    pub fn group(channels: usize, groups: usize, eps: f64, weights: Weights) -> Result<Self> {
        Ok(Self {
            group: GroupNorm::load(channels, groups, eps, weights)?,
            spatial: None,
        })
    }

    /// Reads `norm_layer`, `conv_y` and `conv_b`. Its eps is not configurable.
    pub fn spatial(channels: usize, latent_channels: usize, groups: usize, weights: Weights) -> Result<Self> {
        let weights = weights.to_dtype(DType::F32);
        let conv = |name: &str| Conv3d::pointwise(latent_channels, channels, weights.pp(name).pp("conv"));
        Ok(Self {
            spatial: Some(Spatial {
                conv_y: conv("conv_y")?,
                conv_b: conv("conv_b")?,
            }),
            ..Self::group(channels, groups, 1e-6, weights.pp("norm_layer"))?
        })
    }
}

impl Modulate<Option<Tensor>> for Norm {
    /// Modulation of x (B, F, H, W, C), given the latents (B, f, h, w, L).
    fn modulation(&self, x: &Tensor, latents: &Option<Tensor>) -> Result<Modulation> {
        let [scale, shift] = self.group.tables(x)?;
        let (scale, shift) = match (&self.spatial, latents) {
            (None, _) => (scale, shift),
            (Some(_), None) => bail!("a spatial norm needs the latents"),
            (Some(spatial), Some(latents)) => {
                let latents = latents.to_dtype(DType::F32)?;
                let y = spatial.conv_y.forward((&latents).into())?.0; // (B, f, h, w, C)
                let b = spatial.conv_b.forward((&latents).into())?.0; // (B, f, h, w, C)
                (y.broadcast_mul(&scale)?, (y.broadcast_mul(&shift)? + b)?)
            }
        };
        let rms_eps = None;
        Ok(Modulation { scale, shift, rms_eps })
    }
}

/// Kind of norms in a coder.
#[derive(Debug, Clone, Copy)]
pub struct Norms {
    pub groups: usize,
    pub eps: f64,
    /// Channels of the latents that the decoder's norms are conditioned on.
    pub latent_channels: Option<usize>,
}

impl Norms {
    pub fn load(&self, channels: usize, weights: Weights) -> Result<Norm> {
        match self.latent_channels {
            Some(latent_channels) => Norm::spatial(channels, latent_channels, self.groups, weights),
            None => Norm::group(channels, self.groups, self.eps, weights),
        }
    }

    /// Loads a resnet with two such norms.
    pub fn resnet(&self, channels: [usize; 2], weights: Weights) -> Result<Resnet<Norm>> {
        let norm = |i, channels| self.load(channels, weights.pp(format!("norm{i}")));
        Resnet::load(channels, ["conv1.conv", "conv2.conv", "conv_shortcut"], norm, &weights)
    }
}
