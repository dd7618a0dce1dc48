//! Denoising transformer of LTX-Video: `LTXVideoTransformer3DModel`.
//!
//! Every latent is a token. The text is projected once, and each of N blocks attends to it; the embedding computes the
//! modulation of all blocks from the timestep, to which each adds its own table. Frames may differ in their timestep:
//! image to video sets the first one to 0.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, N = F H W tokens, L text tokens, P
//! timesteps of a sample (1 or F), D the model's width.

use std::sync::Arc;

use candle_core::{Result, Tensor};

mod block;
mod config;
mod positions;

pub use config::Config;
pub use positions::{SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION};

use crate::models::denoiser::{Input, Scalar, State, StaticContext};
use crate::models::input_spec::InputSpec;
use crate::models::latent_size::Layout;
use crate::models::text_embeds::TextShape;
use crate::models::transformer::{self, Transformer};
use crate::nn::embed::TimeModulation;
use crate::nn::feed_forward::{FeedForward, Gelu, PROJECTION};
use crate::nn::patch_embed::unpatchify;
use crate::nn::scale_shift::Head;
use crate::nn::{Linear, Weights, linear};
use block::Block;

/// Tokens of a prompt, including padding: the pipelines' default.
pub const TEXT_TOKENS: usize = 128;

/// Width of the timestep's cosines and sines.
const SINUSOID: usize = 256;

/// Epsilon of the head's norm.
const OUT_NORM_EPS: f64 = 1e-6;

/// Transformer of LTX-Video.
pub type Dit = Transformer<Network>;

/// The whole network.
#[derive(Debug, Clone)]
pub struct Network {
    proj_in: Linear,
    time_embed: TimeModulation,
    caption_projection: FeedForward,
    transformer_blocks: Vec<Block>,
    head: Head,
}

impl transformer::Network for Network {
    type Config = Config;
    type Block = Block;

    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let dim = config.inner_dim();
        let (blocks, time) = (weights.pp("transformer_blocks"), weights.pp("time_embed"));
        let captions = [config.caption_channels, dim, dim];
        Ok(Self {
            proj_in: linear(config.in_channels, dim, weights.pp("proj_in"))?,
            time_embed: TimeModulation::new(SINUSOID, dim, time.pp("emb.timestep_embedder"), time.pp("linear"))?,
            caption_projection: FeedForward::new(captions, PROJECTION, Gelu::Tanh, weights.pp("caption_projection"))?,
            transformer_blocks: transformer::blocks(config.num_layers, blocks, |weights| Block::new(config, weights))?,
            head: Head::new((2, dim), config.predicted_channels(), OUT_NORM_EPS, weights)?,
        })
    }

    fn input_spec(config: &Config) -> InputSpec {
        let channels = [config.in_channels, config.predicted_channels()];
        let text = TextShape::masked(TEXT_TOKENS, config.caption_channels);
        InputSpec {
            frame_timesteps: true,
            scalars: &[Scalar::FrameRate],
            ..InputSpec::new(Layout::ChannelsFirst, channels, [1; 3], text)
        }
    }

    fn embed(&self, config: &Config, input: &Input) -> Result<State> {
        let (_, _, frames, height, width) = input.latents.dims5()?;
        let grid = [frames, height, width];
        let tokens = input.latents.flatten_from(2)?.transpose(1, 2)?; // (B, N, C)
        let hidden = self.proj_in.forward(&tokens)?; // (B, N, D)
        let (time, modulation) = self.time_embed.forward(&input.timestep)?; // (B, P, D), (B, P, 6, D)
        let frame_rates = input.scalars.get(Scalar::FrameRate).unwrap_or_default();
        let rotary = positions::rotary(config.inner_dim(), grid, frame_rates, hidden.device())?;
        Ok(State {
            hidden,
            time,
            modulation: Some(modulation),
            context: Some(self.caption_projection.forward(&input.text.hidden)?), // (B, L, D)
            image: None,
            fixed: Arc::new(StaticContext::of_clip(grid, rotary, input.text.mask.clone())),
        })
    }

    fn blocks(&self) -> &[Block] {
        &self.transformer_blocks
    }

    fn head(&self, _: &Config, state: &State) -> Result<Tensor> {
        let tokens = self.head.forward(&state.hidden, &state.time, &state.timed_parts()?)?; // (B, N, C)
        unpatchify(&tokens, state.fixed.grid, [1; 3]) // (B, C, F, H, W)
    }
}
