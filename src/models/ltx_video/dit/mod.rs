//! The denoising transformer of LTX-Video: `LTXVideoTransformer3DModel`.
//!
//! Every latent is a token. Text is projected once, and attended to by each of N blocks; the stem makes the modulation of
//! all blocks from the timestep, to which each adds a table of its own. Frames may differ in their timestep: image to
//! video gives the first one 0.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, N = F H W tokens, L text tokens, P
//! timesteps of a sample (1 or F), D the model's width.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Device, Error, Result, Tensor};

mod block;
mod config;
mod positions;

pub use config::Config;
pub use positions::{SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION};

use crate::models::denoiser::{Denoiser, Fixed, Input, State};
use crate::nn::embed::{Sinusoid, TimestepEmbedding};
use crate::nn::feed_forward::{FeedForward, Gelu, PROJECTION};
use crate::nn::norm::{Kind, Modulation};
use crate::nn::weights::Planter;
use crate::nn::{Linear, Norm, ScaleShiftTable, Weights, linear};
use crate::ops::activation::silu;
use block::{Block, parts};

/// How a timestep becomes sines and cosines.
const SINUSOID: Sinusoid = Sinusoid {
    width: 256,
    flip_sin_to_cos: true,
    freq_shift: 0.0,
};

/// Epsilon of the head's norm.
const OUT_NORM_EPS: f64 = 1e-6;

/// The whole network.
#[derive(Debug, Clone)]
pub struct Dit {
    config: Config,
    dtype: DType,
    proj_in: Linear,
    time_embed: TimeEmbed,
    caption_projection: FeedForward,
    transformer_blocks: Vec<Block>,
    scale_shift_table: ScaleShiftTable<2>,
    norm_out: Norm,
    proj_out: Linear,
}

impl Dit {
    /// Reads `config.json` and the weights in `folder`, the checkpoint's `transformer/`.
    ///
    /// # Errors
    /// Files that are missing or do not belong together, by file and key or tensor.
    pub fn load(
        folder: &Path,
        dtype: DType,
        device: &Device,
        planter: Option<Arc<dyn Planter>>,
    ) -> anyhow::Result<Self> {
        let config = Config::load(folder)?; // says more than the weights, where both are wrong
        Self::build(folder, config, Weights::open(folder, dtype, device)?, planter)
    }

    /// As [`load`](Self::load), with weights from somewhere else.
    pub fn load_from(folder: &Path, weights: Weights, planter: Option<Arc<dyn Planter>>) -> anyhow::Result<Self> {
        Self::build(folder, Config::load(folder)?, weights, planter)
    }

    fn build(
        folder: &Path,
        config: Config,
        weights: Weights,
        planter: Option<Arc<dyn Planter>>,
    ) -> anyhow::Result<Self> {
        let weights = match planter {
            Some(planter) => weights.with_planter(planter),
            None => weights,
        };
        let dit = Self::new(config, &weights).with_context(|| folder.display().to_string())?;
        weights.finish(&[])?;
        Ok(dit)
    }

    /// Takes its tensors from `weights`, whose root is the transformer's.
    pub fn new(config: Config, weights: &Weights) -> Result<Self> {
        let dim = config.inner_dim();
        let blocks = weights.pp("transformer_blocks");
        let captions = [config.caption_channels, dim, dim];
        Ok(Self {
            dtype: weights.dtype(),
            proj_in: linear(config.in_channels, dim, weights.pp("proj_in"))?,
            time_embed: TimeEmbed::new(dim, weights.pp("time_embed"))?,
            caption_projection: FeedForward::new(captions, PROJECTION, Gelu::Tanh, weights.pp("caption_projection"))?,
            transformer_blocks: (0..config.num_layers)
                .map(|i| Block::new(&config, blocks.pp(i)))
                .collect::<Result<_>>()?,
            scale_shift_table: ScaleShiftTable::new((2, dim), weights)?,
            norm_out: Norm::plain(Kind::Layer, dim, OUT_NORM_EPS, weights)?,
            proj_out: linear(dim, config.predicted_channels(), weights.pp("proj_out"))?,
            config,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Refuses what the network has no place for, before candle says it in shapes alone. Returns the clips' frame rates.
    fn check<'a>(&self, input: &'a Input) -> Result<&'a [f64]> {
        let (batch, channels, frames, height, width) = input.latents.dims5()?;
        let (text_batch, tokens, text_width) = input.text.hidden.dims3()?;
        let refuse = |what: String| Err(Error::Msg(what));
        if channels != self.config.in_channels {
            return refuse(format!(
                "latents of {channels} channels for a model of {}",
                self.config.in_channels
            ));
        }
        if batch * frames * height * width == 0 {
            return refuse(format!("latents without any numbers, {:?}", input.latents.dims()));
        }
        if text_width != self.config.caption_channels {
            return refuse(format!(
                "text of width {text_width} for a model of {}",
                self.config.caption_channels
            ));
        }
        let timesteps = input.timestep.dims();
        if text_batch != batch || (timesteps != [batch] && timesteps != [batch, frames]) {
            return refuse(format!(
                "{batch} clips of {frames} latent frames, {text_batch} texts and timesteps {timesteps:?}: one for each clip \
                 or one for each of its latent frames are needed"
            ));
        }
        if let Some(mask) = input.text.mask.as_ref().filter(|mask| mask.dims() != [batch, tokens]) {
            return refuse(format!("a mask {:?} for {batch} texts of {tokens} tokens", mask.dims()));
        }
        if input.image.is_some() || input.ofs.is_some() {
            return refuse("this model has no place for an encoded image or ofs".into());
        }
        match input.frame_rates.as_deref() {
            Some(rates) if rates.len() == batch && rates.iter().all(|rate| rate.is_finite() && *rate > 0.0) => {
                Ok(rates)
            }
            Some(rates) => refuse(format!("frame rates {rates:?} for {batch} clips")),
            None => refuse("this model's positions count seconds: it needs the clips' frame rates".into()),
        }
    }
}

impl Denoiser for Dit {
    fn stem(&self, input: &Input) -> Result<State> {
        let frame_rates = self.check(input)?;
        let (batch, _, frames, height, width) = input.latents.dims5()?;
        let grid = [frames, height, width];
        let dim = self.config.inner_dim();
        let tokens = input.latents.to_dtype(self.dtype)?.flatten_from(2)?.transpose(1, 2)?; // (B, N, C)
        let hidden = self.proj_in.forward(&tokens)?; // (B, N, D)
        let (time, modulation) = self.time_embed.forward(&input.timestep, self.dtype)?; // (B P, D), (B P, 6 D)
        let text = self
            .caption_projection
            .forward(&input.text.hidden.to_dtype(self.dtype)?)?; // (B, L, D)
        let rotary = positions::rotary(dim, grid, frame_rates, hidden.device())?;
        Ok(State {
            hidden,
            time: time.reshape((batch, (), dim))?,                      // (B, P, D)
            modulation: Some(modulation.reshape((batch, (), 6, dim))?), // (B, P, 6, D)
            text: Some(text),
            image: None,
            fixed: Arc::new(Fixed {
                grid,
                parts: vec![grid.iter().product()],
                rotary: Some(rotary),
                text_mask: input.text.mask.clone(),
            }),
        })
    }

    fn num_blocks(&self) -> usize {
        self.transformer_blocks.len()
    }

    fn block(&self, index: usize, state: &State) -> Result<State> {
        match self.transformer_blocks.get(index) {
            Some(block) => block.forward(state),
            None => Err(Error::Msg(format!("no block {index} of {}", self.num_blocks()))),
        }
    }

    fn head(&self, state: &State) -> Result<Tensor> {
        let [shift, scale] = self.scale_shift_table.rows(&state.time.unsqueeze(2)?)?; // (B, P, D)
        let hidden = self
            .norm_out
            .modulated(&state.hidden, &Modulation { shift, scale }, &parts(state)?)?;
        let tokens = self.proj_out.forward(&hidden)?; // (B, N, C)
        let (batch, _, channels) = tokens.dims3()?;
        let [frames, height, width] = state.fixed.grid;
        tokens
            .transpose(1, 2)?
            .reshape((batch, channels, frames, height, width))
    }
}

/// The timestep, embedded, and what all blocks are modulated by. Equals `AdaLayerNormSingle`.
#[derive(Debug, Clone)]
struct TimeEmbed {
    timestep_embedder: TimestepEmbedding, // emb.timestep_embedder
    linear: Linear,
}

impl TimeEmbed {
    fn new(dim: usize, weights: Weights) -> Result<Self> {
        Ok(Self {
            timestep_embedder: TimestepEmbedding::new(SINUSOID.width, dim, weights.pp("emb.timestep_embedder"))?,
            linear: linear(dim, 6 * dim, weights.pp("linear"))?,
        })
    }

    /// Timesteps (B) or (B, F) -> (B P, D), (B P, 6 D)
    fn forward(&self, timestep: &Tensor, dtype: DType) -> Result<(Tensor, Tensor)> {
        let angles = SINUSOID.forward(timestep)?.to_dtype(dtype)?; // (B P, 256)
        let time = self.timestep_embedder.forward(&angles)?;
        let modulation = self.linear.forward(&silu(&time)?)?;
        Ok((time, modulation))
    }
}
