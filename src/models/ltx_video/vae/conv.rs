//! `LTXVideoCausalConv3d`: 3x3x3 with a border of zeros, the first frame repeated before the clip (causal) or the first
//! and the last at its ends. The norms are RMS norms without a gain, which the next convolution applies on its way in.

use candle_core::{Result, Tensor};

use crate::nn::Weights;
use crate::nn::conv3d::{Conv3d, Input, Modulation, Past, Resample};

/// `RMSNorm(eps=1e-8)` in front of every convolution but the first.
const RMS_EPS: f64 = 1e-8;

pub struct Conv {
    conv: Conv3d,
    past: Past<'static>,
}

impl Conv {
    /// Reads `conv`.
    pub fn load(channels: usize, outputs: usize, past: Past<'static>, weights: Weights) -> Result<Self> {
        let conv = Conv3d::causal(channels, outputs, weights.pp("conv"))?;
        Ok(Self { conv, past })
    }

    pub fn new(conv: Conv3d, past: Past<'static>) -> Self {
        Self { conv, past }
    }

    /// conv(silu(norm(x))), or conv(x) where there is no norm: (1, F, H, W, C) -> (1, F', H', W', O)
    pub fn forward(&self, x: &Tensor, norm: Option<&Modulation>) -> Result<Tensor> {
        Ok(self.conv.forward(self.input(x, norm))?.0)
    }

    /// `onto` + conv(...), in the memory of `onto`.
    pub fn forward_onto(&self, onto: Tensor, x: &Tensor, norm: Option<&Modulation>) -> Result<Tensor> {
        Ok(self.conv.forward_onto(onto, self.input(x, norm))?.0)
    }

    fn input<'a>(&self, x: &'a Tensor, modulation: Option<&'a Modulation>) -> Input<'a> {
        Input {
            x,
            past: self.past,
            modulation,
            resample: Resample::None,
        }
    }
}

/// The norm before a convolution of x (1, F, H, W, C).
pub fn norm(x: &Tensor) -> Result<Modulation> {
    let zeros = Tensor::zeros(x.dim(4)?, x.dtype(), x.device())?;
    modulated_norm(&zeros, &zeros, x)
}

/// norm(x) (1 + scale) + shift, both (C).
pub fn modulated_norm(shift: &Tensor, scale: &Tensor, x: &Tensor) -> Result<Modulation> {
    let table = |values: &Tensor| values.to_dtype(x.dtype())?.reshape((1, 1, 1, 1, ()));
    Ok(Modulation {
        scale: table(&(scale + 1.0)?)?,
        shift: table(shift)?,
        rms_eps: Some(RMS_EPS),
    })
}
