//! `LTXVideoResnetBlock3d`: x + conv2(silu(norm2(conv1(silu(norm1(x)))))), x through a layer norm and a 1x1x1 convolution
//! where the number of channels changes.
//!
//! In the decoder the norms may be modulated by the timestep, and noise may be added after both convolutions: one
//! normal number for every pixel, the same in all frames and channels, times a learned factor for every channel.

use candle_core::{Result, Tensor, bail};

use super::conv::{Conv, modulated_norm, norm};
use crate::nn::conv3d::{Conv3d, Past};
use crate::nn::{Norm, Weights};
use crate::rng::Rng;

/// What the resnets of a coder, or of one of its blocks, have in common.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    pub past: Past<'static>,
    pub eps: f64,
    pub inject_noise: bool,
    pub timestep_conditioning: bool,
}

pub struct Resnet {
    conv1: Conv,
    conv2: Conv,
    shortcut: Option<Shortcut>,
    per_channel_scales: Option<[Tensor; 2]>, // (C) each
    scale_shift_table: Option<Tensor>,       // (4, C)
}

struct Shortcut {
    norm3: Norm,
    conv_shortcut: Conv3d,
}

impl Resnet {
    pub fn load(channels: usize, outputs: usize, kind: Kind, weights: Weights) -> Result<Self> {
        let shortcut = || {
            Ok::<_, candle_core::Error>(Shortcut {
                norm3: Norm::layer(channels, kind.eps, weights.pp("norm3"))?,
                conv_shortcut: Conv3d::pointwise(channels, outputs, weights.pp("conv_shortcut.conv"))?,
            })
        };
        let noise_scale = |name: &str| weights.get((channels, 1, 1), name)?.reshape(channels);
        Ok(Self {
            conv1: Conv::load(channels, outputs, kind.past, weights.pp("conv1"))?,
            conv2: Conv::load(outputs, outputs, kind.past, weights.pp("conv2"))?,
            shortcut: (channels != outputs).then(shortcut).transpose()?,
            per_channel_scales: match kind.inject_noise {
                true => Some([noise_scale("per_channel_scale1")?, noise_scale("per_channel_scale2")?]),
                false => None,
            },
            scale_shift_table: kind
                .timestep_conditioning
                .then(|| weights.get((4, channels), "scale_shift_table"))
                .transpose()?,
        })
    }

    /// A row of them, `resnets`.
    pub fn load_all(count: usize, channels: usize, kind: Kind, weights: &Weights) -> Result<Vec<Self>> {
        (0..count)
            .map(|i| Self::load(channels, channels, kind, weights.pp("resnets").pp(i)))
            .collect()
    }

    /// (1, F, H, W, C) -> (1, F, H, W, O), given what the timestep says, (4, C). Takes x, because the result may be
    /// built in its place.
    pub fn forward(&self, x: Tensor, time: Option<&Tensor>, mut rng: Option<&mut Rng>) -> Result<Tensor> {
        let shifts_and_scales = match (&self.scale_shift_table, time) {
            (None, _) => None,
            (Some(table), Some(time)) => Some((table + time)?),
            (Some(_), None) => bail!("the decoder needs a timestep"),
        };
        let norm_of = |x: &Tensor, which: usize| match &shifts_and_scales {
            Some(rows) => modulated_norm(&rows.get(2 * which)?, &rows.get(2 * which + 1)?, x),
            None => norm(x),
        };
        let h = self.conv1.forward(&x, Some(&norm_of(&x, 0)?))?;
        let onto = match &self.shortcut {
            Some(shortcut) => {
                let x = shortcut.norm3.forward(&x)?;
                shortcut.conv_shortcut.forward((&x).into())?.0
            }
            None => x.clone(),
        };
        drop(x);
        let h = self.with_noise(h, 0, rng.as_deref_mut())?;
        let y = self.conv2.forward_onto(onto, &h, Some(&norm_of(&h, 1)?))?;
        drop(h);
        self.with_noise(y, 1, rng)
    }

    fn with_noise(&self, x: Tensor, which: usize, rng: Option<&mut Rng>) -> Result<Tensor> {
        let Some(scales) = &self.per_channel_scales else {
            return Ok(x);
        };
        let Some(rng) = rng else {
            bail!("these resnets need random numbers");
        };
        let (_, _, height, width, _) = x.dims5()?;
        let noise = Tensor::from_vec(rng.randn(height * width), (1, 1, height, width, 1), x.device())?;
        let noise = noise
            .to_dtype(x.dtype())?
            .broadcast_mul(&scales[which].reshape((1, 1, 1, 1, ()))?)?;
        x.broadcast_add(&noise) // (1, F, H, W, C)
    }
}
