//! `LTXVideoResnetBlock3d`: a [`Resnet`] whose norms have no weights, and whose shortcut has a layer norm.
//!
//! In the decoder the norms may be modulated by the timestep, and noise may be added after both convolutions: one
//! normal number per pixel, the same in all frames and channels, times a learned factor per channel.
//!
//! Shapes: F frames, H rows, W columns, C channels, n vectors of modulation; samples come one by one.

use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor, bail};

use crate::nn::coder::{Layer, Modulate};
use crate::nn::conv3d::{FeatureCache, Modulation};
use crate::nn::embed::TimeEmbedder;
use crate::nn::{self, Resnet, Weights};
use crate::rng::Rng;

const RMS_EPS: f64 = 1e-8;

/// Width of a timestep's cosines and sines.
const TIME_PROJ: usize = 256;

/// State of a pass: the noise level of the latents, and the source of noise.
pub struct State {
    /// Noise level, (1) in 0..1.
    pub timestep: Option<Tensor>,
    /// Embedded timesteps for norms, (n, C) f32, by the scope of the norms.
    pub times: BTreeMap<usize, Tensor>,
    pub rng: Rng,
}

impl Default for State {
    /// State of an encoder, which neither sees a timestep nor draws.
    fn default() -> Self {
        Self {
            timestep: None,
            times: BTreeMap::new(),
            rng: Rng::new(0),
        }
    }
}

/// Embedding of the timestep for the norms after it: `PixArtAlphaCombinedTimestepSizeEmbeddings` without sizes; in f32,
/// because it is small and ends in tables.
pub struct EmbedTime {
    timestep_scale_multiplier: Tensor, // ()
    time_embedder: TimeEmbedder,
    vectors: usize,
    scope: usize,
}

impl EmbedTime {
    /// Embedding as `vectors` of so many channels for the norms of a scope, the timestep multiplied by `scale`.
    pub fn load(scale: &Tensor, scope: usize, [vectors, channels]: [usize; 2], weights: &Weights) -> Result<Self> {
        let weights = weights.to_dtype(DType::F32).pp("time_embedder.timestep_embedder");
        Ok(Self {
            timestep_scale_multiplier: scale.clone(),
            time_embedder: TimeEmbedder::new(TIME_PROJ, vectors * channels, weights)?,
            vectors,
            scope,
        })
    }
}

impl Layer<State> for EmbedTime {
    fn forward(&self, x: Tensor, _memory: &mut FeatureCache, state: &mut State) -> Result<Tensor> {
        if let (Some(timestep), false) = (&state.timestep, state.times.contains_key(&self.scope)) {
            let scale = self.timestep_scale_multiplier.to_dtype(timestep.dtype())?;
            let time = self.time_embedder.forward(&timestep.broadcast_mul(&scale)?)?;
            state.times.insert(self.scope, time.reshape((self.vectors, ()))?); // (n, C)
        }
        Ok(x)
    }
}

/// `RMSNorm(eps=1e-8)` without a gain, before every convolution but the first; norm(x) (1 + scale) + shift if there is a
/// timestep. Noise is added to the convolution's result.
#[derive(Default)]
pub struct Norm {
    /// Vectors that are added to the embedded timestep, (n, C) f32.
    pub scale_shift_table: Option<Tensor>,
    /// Place of the shift among them, before the scale.
    place: usize,
    /// Scope of the embedded timestep: the place of its layer.
    pub scope: usize,
    /// Factor of the noise, (C) f32.
    per_channel_scale: Option<Tensor>,
}

impl Modulate<State> for Norm {
    fn modulation(&self, x: &Tensor, state: &State) -> Result<Modulation> {
        match (&self.scale_shift_table, state.times.get(&self.scope)) {
            (None, _) => {
                let ones = Tensor::ones(x.dim(4)?, DType::F32, x.device())?;
                Modulation::rms(x, RMS_EPS, &ones, None)
            }
            (Some(table), Some(time)) => {
                let vectors = (table + time)?; // (n, C)
                let (shift, scale) = (vectors.get(self.place)?, vectors.get(self.place + 1)?);
                Modulation::rms(x, RMS_EPS, &(scale + 1.0)?, Some(&shift))
            }
            (Some(_), None) => bail!("the decoder needs a timestep"),
        }
    }

    fn finish(&self, y: Tensor, memory: &mut FeatureCache, state: &mut State) -> Result<Tensor> {
        let Some(scale) = &self.per_channel_scale else {
            return Ok(y);
        };
        let (_, _, height, width, _) = y.dims5()?;
        let shape = (1, 1, height, width, 1);
        let noise = memory.once(|| Tensor::from_vec(state.rng.randn(height * width), shape, y.device()))?;
        let noise = noise.broadcast_mul(&scale.reshape((1, 1, 1, 1, ()))?)?;
        y.broadcast_add(&noise.to_dtype(y.dtype())?) // (1, F, H, W, C)
    }
}

/// Settings shared by the resnets of a coder, or of one of its blocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kind<'a> {
    pub eps: f64,
    pub inject_noise: bool,
    /// Factor of timesteps, if there are some.
    pub timestep_scale: Option<&'a Tensor>,
    /// Scope of its embedding.
    pub scope: usize,
}

impl Kind<'_> {
    pub fn resnet(self, [channels, outputs]: [usize; 2], weights: Weights) -> Result<Resnet<Norm>> {
        let tables = weights.to_dtype(DType::F32);
        let table = || tables.get((4, channels), "scale_shift_table");
        let table = self.timestep_scale.map(|_| table()).transpose()?;
        let norm = |number: usize, _channels| {
            let name = format!("per_channel_scale{number}");
            let scale = || tables.get((channels, 1, 1), &name)?.reshape(channels);
            Ok(Norm {
                scale_shift_table: table.clone(),
                place: 2 * (number - 1),
                scope: self.scope,
                per_channel_scale: self.inject_noise.then(scale).transpose()?,
            })
        };
        let convs = ["conv1.conv", "conv2.conv", "conv_shortcut.conv"];
        let mut resnet = Resnet::load([channels, outputs], convs, norm, &weights)?;
        let shortcut_norm = || nn::Norm::layer(channels, self.eps, weights.pp("norm3"));
        resnet.shortcut_norm = (channels != outputs).then(shortcut_norm).transpose()?;
        Ok(resnet)
    }
}
