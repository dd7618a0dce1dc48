//! The denoising transformer of Wan 2.1, text and image to video: `WanTransformer3DModel`.
//!
//! Patches run through N blocks that attend to themselves and across to the text and, in image to video, to what an image
//! encoder says of the image; what the VAE says of it comes behind the clip's channels. The stem makes the modulation of
//! all blocks from the timestep, to which each adds a table of its own.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, N tokens, L text tokens, M image
//! tokens, D the model's width.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

mod block;
mod condition;
mod config;

pub use config::Config;

use crate::models::denoiser::{Fixed, Input, State};
use crate::models::family::Layout;
use crate::models::places::{ImagePlaces, Places};
use crate::models::transformer::{self, Transformer};
use crate::nn::Weights;
use crate::nn::patches::{PatchEmbedding, unpatchify};
use crate::nn::rope::{Axis, Pairs, Rotary, THETA};
use crate::nn::scale_shift::Head;
use block::Block;
use condition::ConditionEmbedder;

pub type Dit = Transformer<Network>;

/// The whole network.
#[derive(Debug, Clone)]
pub struct Network {
    patch_embedding: PatchEmbedding,
    condition_embedder: ConditionEmbedder,
    blocks: Vec<Block>,
    head: Head,
}

impl transformer::Network for Network {
    type Config = Config;
    type Block = Block;

    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let dim = config.inner_dim();
        let blocks = weights.pp("blocks");
        let patch_numbers: usize = config.patch_size.iter().product();
        Ok(Self {
            patch_embedding: PatchEmbedding::new(
                config.in_channels,
                dim,
                config.patch_size,
                weights.pp("patch_embedding"),
            )?,
            condition_embedder: ConditionEmbedder::new(config, weights.pp("condition_embedder"))?,
            blocks: transformer::blocks(config.num_layers, blocks, |weights| Block::new(config, weights))?,
            head: Head::new(
                (1, 2, dim),
                patch_numbers * config.predicted_channels(),
                config.eps,
                weights,
            )?,
        })
    }

    fn places(config: &Config) -> Places {
        let image = |width| ImagePlaces {
            tokens: config.pos_embed_seq_len,
            width,
        };
        Places {
            axis: config.rope_max_seq_len,
            image: config.image_dim.map(image),
            ..Places::new(
                Layout::ChannelsFirst,
                config.in_channels,
                config.patch_size,
                config.text_dim,
            )
        }
    }

    /// Published models that attend to an image hold a norm of queries that are not there.
    fn stray(&self) -> Vec<String> {
        (0..self.blocks.len())
            .map(|i| format!("blocks.{i}.attn2.norm_added_q."))
            .collect()
    }

    fn stem(&self, config: &Config, input: &Input) -> Result<State> {
        let (hidden, grid) = self.patch_embedding.forward(&input.latents)?; // (B, N, D)
        let (time, modulation) = self.condition_embedder.time.forward(&input.timestep)?; // (B, 1, D), (B, 1, 6, D)
        let rotary = rotary(config, grid, hidden.device())?;
        Ok(State {
            hidden,
            time,
            modulation: Some(modulation),
            text: Some(self.condition_embedder.text_embedder.forward(&input.text.hidden)?), // (B, L, D)
            image: self.condition_embedder.image(input.image.as_ref())?,                    // (B, M, D)
            fixed: Arc::new(Fixed::of_clip(grid, rotary, None)),
        })
    }

    fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn head(&self, config: &Config, state: &State) -> Result<Tensor> {
        let patches = self.head.forward(&state.hidden, &state.time, &state.fixed.parts)?;
        unpatchify(&patches, state.fixed.grid, config.patch_size) // (B, C, F, H, W)
    }
}

/// How tokens on a grid turn: a third of a head's features, rounded, by the row, as many by the column, the rest by the
/// frame. Equals `WanRotaryPosEmbed`.
fn rotary(config: &Config, grid: [usize; 3], device: &Device) -> Result<Rotary> {
    let space = config.attention_head_dim / 6 * 2;
    let widths = [config.attention_head_dim - 2 * space, space, space];
    let axis = |(count, width): (usize, usize)| Axis {
        positions: (0..count).map(|i| i as f32).collect(),
        width,
    };
    let axes: Vec<Axis> = grid.into_iter().zip(widths).map(axis).collect();
    Rotary::grid(&axes, THETA, Pairs::Neighbours, device)
}
