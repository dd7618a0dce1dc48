//! Denoising transformer of Wan 2.1, text and image to video: `WanTransformer3DModel`.
//!
//! Patches pass through N blocks with self-attention, cross-attention to the text and, in image-to-video, to the image
//! encoder's tokens; the VAE's latents of the image follow the clip's channels. The embedding computes the modulation
//! of all blocks from the timestep, to which each adds its own table.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, N tokens, L text tokens, M image
//! tokens, D the model's width.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

mod block;
mod condition;
mod config;

pub use config::Config;

use crate::models::denoiser::{Input, State, StaticContext};
use crate::models::dense_modules::DenseModules;
use crate::models::input_spec::{ImageTokensSpec, InputSpec};
use crate::models::latent_size::Layout;
use crate::models::text_embeds::TextShape;
use crate::models::transformer::{self, Transformer};
use crate::nn::Weights;
use crate::nn::patch_embed::{PatchEmbed, unpatchify};
use crate::nn::rope::{Axis, PairLayout, Rotary, THETA};
use crate::nn::scale_shift::Head;
use block::Block;
use condition::ConditionEmbedder;

/// Tokens of a prompt, including padding: the pipelines' default.
pub const TEXT_TOKENS: usize = 512;

/// Transformer of Wan.
pub type Dit = Transformer<Network>;

/// The whole network.
#[derive(Debug, Clone)]
pub struct Network {
    patch_embedding: PatchEmbed,
    condition_embedder: ConditionEmbedder,
    blocks: Vec<Block>,
    head: Head,
}

impl transformer::Network for Network {
    type Config = Config;
    type Block = Block;

    const DENSE_MODULES: DenseModules = DenseModules {
        keep_in_fp32: &["rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"],
        skip_layerwise_casting: &["patch_embedding", "condition_embedder", "norm"],
    };

    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let dim = config.inner_dim();
        let blocks = weights.pp("blocks");
        let patch_numbers: usize = config.patch_size.iter().product();
        Ok(Self {
            patch_embedding: PatchEmbed::new(
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

    fn input_spec(config: &Config) -> InputSpec {
        let image = |width| ImageTokensSpec {
            tokens: config.pos_embed_seq_len,
            width,
        };
        let channels = [config.in_channels, config.predicted_channels()];
        let text = TextShape::new(TEXT_TOKENS, config.text_dim);
        InputSpec {
            axis: config.rope_max_seq_len,
            image: config.image_dim.map(image),
            ..InputSpec::new(Layout::ChannelsFirst, channels, config.patch_size, text)
        }
    }

    /// Published models that attend to an image contain a norm of queries that do not exist.
    fn ignored_keys(&self) -> Vec<String> {
        (0..self.blocks.len())
            .map(|i| format!("blocks.{i}.attn2.norm_added_q."))
            .collect()
    }

    fn embed(&self, config: &Config, input: &Input) -> Result<State> {
        let (hidden, grid) = self.patch_embedding.forward(&input.latents)?; // (B, N, D)
        let (time, modulation) = self.condition_embedder.time.forward(&input.timestep)?; // (B, 1, D), (B, 1, 6, D)
        let rotary = rotary(config, grid, hidden.device())?;
        Ok(State {
            hidden,
            time,
            modulation: Some(modulation),
            context: Some(self.condition_embedder.text_embedder.forward(&input.text.hidden)?), // (B, L, D)
            image: self.condition_embedder.image(input.image.as_ref())?,                       // (B, M, D)
            fixed: Arc::new(StaticContext::of_clip(grid, rotary, None)),
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

/// Returns the rotation on a grid: a third of a head's features, rounded, by the row, as many by the column, the rest
/// by the frame. Equals `WanRotaryPosEmbed`.
fn rotary(config: &Config, grid: [usize; 3], device: &Device) -> Result<Rotary> {
    let space = config.attention_head_dim / 6 * 2;
    let widths = [config.attention_head_dim - 2 * space, space, space];
    let axes = grid
        .into_iter()
        .zip(widths)
        .map(|(count, width)| Axis::counted(count, width));
    let axes: Vec<Axis> = axes.collect();
    Rotary::grid(&axes, THETA, PairLayout::Neighbours, device)
}
