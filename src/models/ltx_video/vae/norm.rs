//! `RMSNorm(eps=1e-8)` without a gain, before every convolution but the first; the convolution applies it to its input.

use candle_core::{DType, Result, Tensor};

use crate::nn::conv3d::Modulation;

const RMS_EPS: f64 = 1e-8;

/// Modulation for norm(x) of x (1, F, H, W, C); with rows, norm(x) (1 + scale) + shift, (C) each, in f32.
pub fn norm(x: &Tensor, rows: Option<(&Tensor, &Tensor)>) -> Result<Modulation> {
    match rows {
        Some((shift, scale)) => Modulation::rms(x, RMS_EPS, &(scale + 1.0)?, Some(shift)),
        None => Modulation::rms(x, RMS_EPS, &Tensor::ones(x.dim(4)?, DType::F32, x.device())?, None),
    }
}
