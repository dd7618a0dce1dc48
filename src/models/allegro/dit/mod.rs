//! Denoising transformer of Allegro: `AllegroTransformer3DModel`.
//!
//! Square patches of each latent frame are tokens. The text is projected once, and each of N blocks attends to it; the
//! embedding computes the modulation of all blocks from the timestep, to which each adds its own table. Queries and keys
//! turn by their place, a third of each head by the frame, the row and the column:
//!
//! ```text
//! angle of pair i on an axis = p / s theta^(-2i / (K / 3))
//! ```
//!
//! with p counted from 0 and s the axis's `interpolation_scale`. The pair is features i and i + K / 6 of that third.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, N tokens, L text tokens, D the model's
//! width, heads of K features.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

mod block;
mod config;

pub use config::Config;

use crate::models::denoiser::{Input, State, StaticContext};
use crate::models::dense_modules::DenseModules;
use crate::models::input_spec::InputSpec;
use crate::models::latent_size::Layout;
use crate::models::text_embeds::TextShape;
use crate::models::transformer::{self, Transformer};
use crate::nn::embed::TimeModulation;
use crate::nn::feed_forward::{FeedForward, Gelu, PROJECTION};
use crate::nn::patch_embed::{PatchEmbed, unpatchify};
use crate::nn::rope::{Axis, PairLayout, Rotary, THETA};
use crate::nn::scale_shift::Head;
use crate::nn::{Linear, Weights};
use block::Block;
use config::AXES;

/// Tokens of a prompt, including padding: the pipeline's default.
pub const TEXT_TOKENS: usize = 512;

/// Width of the timestep's cosines and sines.
const SINUSOID: usize = 256;

/// Epsilon of the head's norm.
const OUT_NORM_EPS: f64 = 1e-6;

/// Transformer of Allegro.
pub type Dit = Transformer<Network>;

/// The whole network.
#[derive(Debug, Clone)]
pub struct Network {
    pos_embed: PatchEmbed, // pos_embed.proj
    adaln_single: TimeModulation,
    caption_projection: FeedForward,
    transformer_blocks: Vec<Block>,
    head: Head, // scale_shift_table, proj_out
}

impl transformer::Network for Network {
    type Config = Config;
    type Block = Block;

    const DENSE_MODULES: DenseModules = DenseModules {
        keep_in_fp32: &[],
        skip_layerwise_casting: &["adaln_single"],
    };

    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let (dim, patch) = (config.inner_dim(), [config.patch_size; 2]);
        let (blocks, time) = (weights.pp("transformer_blocks"), weights.pp("adaln_single"));
        let captions = [config.caption_channels, dim, dim];
        let proj = Linear::patches(config.in_channels, dim, &patch, true, weights.pp("pos_embed.proj"))?;
        let numbers = patch.iter().product::<usize>() * config.out_channels;
        Ok(Self {
            pos_embed: PatchEmbed::by(proj, config.patch()),
            adaln_single: TimeModulation::new(SINUSOID, dim, time.pp("emb.timestep_embedder"), time.pp("linear"))?,
            caption_projection: FeedForward::new(captions, PROJECTION, Gelu::Tanh, weights.pp("caption_projection"))?,
            transformer_blocks: transformer::blocks(config.num_layers, blocks, |weights| Block::new(config, weights))?,
            head: Head::new((2, dim), numbers, OUT_NORM_EPS, weights)?,
        })
    }

    fn input_spec(config: &Config) -> InputSpec {
        let channels = [config.in_channels, config.out_channels];
        let text = TextShape::masked(TEXT_TOKENS, config.caption_channels);
        InputSpec::new(Layout::ChannelsFirst, channels, config.patch(), text)
    }

    fn embed(&self, config: &Config, input: &Input) -> Result<State> {
        let text = &input.text; // (B, L, E)
        let (hidden, grid) = self.pos_embed.forward(&input.latents)?; // (B, N, D)
        let (time, modulation) = self.adaln_single.forward(&input.timestep)?; // (B, 1, D), (B, 1, 6, D)
        let rotary = rotary(config, grid, hidden.device())?;
        Ok(State {
            hidden,
            time,
            modulation: Some(modulation),
            context: Some(self.caption_projection.forward(&text.hidden)?), // (B, L, D)
            image: None,
            fixed: Arc::new(StaticContext::of_clip(grid, rotary, text.mask.clone())),
        })
    }

    fn blocks(&self) -> &[Block] {
        &self.transformer_blocks
    }

    fn head(&self, config: &Config, state: &State) -> Result<Tensor> {
        let tokens = self.head.forward(&state.hidden, &state.time, &state.timed_parts()?)?; // (B, N, p p C)
        unpatchify(&tokens, state.fixed.grid, config.patch()) // (B, C, F, H, W)
    }
}

/// Rotation of a grid of tokens.
fn rotary(config: &Config, grid: [usize; AXES], device: &Device) -> Result<Rotary> {
    let width = config.attention_head_dim / AXES;
    let axis = |(count, scale): (usize, f64)| Axis {
        positions: (0..count).map(|i| i as f32 / scale as f32).collect(),
        width,
    };
    let axes: Vec<Axis> = grid.into_iter().zip(config.interpolation_scales()).map(axis).collect();
    Rotary::grid(&axes, THETA, PairLayout::HalvesOf(AXES), device)
}
