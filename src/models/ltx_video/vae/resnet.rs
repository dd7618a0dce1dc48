//! `LTXVideoResnetBlock3d`: x + conv2(silu(norm2(conv1(silu(norm1(x)))))), x through a layer norm and a 1x1x1
//! convolution if the number of channels changes.
//!
//! In the decoder the norms may be modulated by the timestep, and noise may be added after both convolutions: one
//! normal number per pixel, the same in all frames and channels, times a learned factor per channel.

use candle_core::{DType, Result, Tensor, bail};

use super::norm::norm;
use crate::nn::conv3d::{Conv3d, FeatureCache};
use crate::nn::{Norm, Weights};
use crate::rng::Rng;

/// Settings shared by the resnets of a coder, or of one of its blocks.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub eps: f64,
    pub inject_noise: bool,
    pub timestep_conditioning: bool,
}

/// Conditions of resnets besides the clip.
pub struct DecoderConditions<'a> {
    /// Embedded timestep, (4, C) in f32.
    pub time: Option<Tensor>,
    pub rng: &'a mut Rng,
}

pub struct Resnet {
    conv1: Conv3d,
    conv2: Conv3d,
    shortcut: Option<(Norm, Conv3d)>,        // norm3, conv_shortcut
    per_channel_scales: Option<[Tensor; 2]>, // (C) each, f32
    scale_shift_table: Option<Tensor>,       // (4, C) f32
}

impl Resnet {
    pub fn load(channels: usize, outputs: usize, kind: Kind, weights: Weights) -> Result<Self> {
        let shortcut = || {
            let norm = Norm::layer(channels, kind.eps, weights.pp("norm3"))?;
            let conv = Conv3d::pointwise(channels, outputs, weights.pp("conv_shortcut.conv"))?;
            Ok::<_, candle_core::Error>((norm, conv))
        };
        let tables = weights.to_dtype(DType::F32);
        let noise_scale = |name: &str| tables.get((channels, 1, 1), name)?.reshape(channels);
        Ok(Self {
            conv1: Conv3d::causal(channels, outputs, weights.pp("conv1.conv"))?,
            conv2: Conv3d::causal(outputs, outputs, weights.pp("conv2.conv"))?,
            shortcut: (channels != outputs).then(shortcut).transpose()?,
            per_channel_scales: match kind.inject_noise {
                true => Some([noise_scale("per_channel_scale1")?, noise_scale("per_channel_scale2")?]),
                false => None,
            },
            scale_shift_table: kind
                .timestep_conditioning
                .then(|| tables.get((4, channels), "scale_shift_table"))
                .transpose()?,
        })
    }

    /// Forward pass (1, F, H, W, C) -> (1, F, H, W, O). Takes ownership of x, to build the result in its memory.
    pub fn forward(&self, x: Tensor, memory: &mut FeatureCache, conditions: &mut DecoderConditions) -> Result<Tensor> {
        let shifts_and_scales = match (&self.scale_shift_table, &conditions.time) {
            (None, _) => None,
            (Some(table), Some(time)) => Some((table + time)?),
            (Some(_), None) => bail!("the decoder needs a timestep"),
        };
        let norm_of = |x: &Tensor, which: usize| match &shifts_and_scales {
            Some(rows) => norm(x, Some((&rows.get(2 * which)?, &rows.get(2 * which + 1)?))),
            None => norm(x, None),
        };
        let h = memory.convolve(&self.conv1, &x, Some(&norm_of(&x, 0)?))?;
        let onto = match &self.shortcut {
            Some((norm, conv)) => conv.forward((&norm.forward(&x)?).into())?.0,
            None => x.clone(),
        };
        drop(x);
        let h = self.with_noise(h, 0, conditions)?;
        let y = memory.convolve_onto(onto, &self.conv2, &h, Some(&norm_of(&h, 1)?))?;
        drop(h);
        self.with_noise(y, 1, conditions)
    }

    fn with_noise(&self, x: Tensor, which: usize, conditions: &mut DecoderConditions) -> Result<Tensor> {
        let Some(scales) = &self.per_channel_scales else {
            return Ok(x);
        };
        let (_, _, height, width, _) = x.dims5()?;
        let noise = Tensor::from_vec(
            conditions.rng.randn(height * width),
            (1, 1, height, width, 1),
            x.device(),
        )?;
        let noise = noise.broadcast_mul(&scales[which].reshape((1, 1, 1, 1, ()))?)?;
        x.broadcast_add(&noise.to_dtype(x.dtype())?) // (1, F, H, W, C)
    }
}
