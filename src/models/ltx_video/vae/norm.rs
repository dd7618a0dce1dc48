//! `RMSNorm(eps=1e-8)` without a gain, in front of every convolution but the first, which applies it on its way in.

use candle_core::{Result, Tensor};

use crate::nn::conv3d::Modulation;

const RMS_EPS: f64 = 1e-8;

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
