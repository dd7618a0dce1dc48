//! Denoising transformer of Mochi 1: `MochiTransformer3DModel`.
//!
//! Clip and text pass through blocks with joint attention, the text in a narrower stream that the last block only reads.
//! Timestep and pooled text modulate every block; learned rotary frequencies turn the clip's tokens alone. Padding of a text is
//! left out of attention; what lies behind the longest text of a batch is cut off.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, N tokens of the clip, L of the text, D the
//! model's width, E the text encoder's.

use std::sync::Arc;

use candle_core::{Result, Tensor};

mod block;
mod config;
mod positions;

pub use config::Config;

use crate::models::denoiser::{Input, State, StaticContext};
use crate::models::dense_modules::DenseModules;
use crate::models::input_spec::InputSpec;
use crate::models::latent_size::Layout;
use crate::models::text_embeds::TextShape;
use crate::models::transformer::{self, Transformer};
use crate::nn::ada_norm::TimeProjection;
use crate::nn::attention_pool::AttentionPool;
use crate::nn::embed::TimeEmbedder;
use crate::nn::norm::{Modulation, NormKind};
use crate::nn::patch_embed::{PatchEmbed, unpatchify};
use crate::nn::{Linear, Norm, Weights, linear};
use block::Block;
use config::POOL_HEADS;
use positions::PosFrequencies;

/// Tokens of a prompt, including padding: the pipeline's default.
pub const TEXT_TOKENS: usize = 256;

/// Epsilon of all norms but those of queries and keys.
const EPS: f64 = 1e-6;

/// Transformer of Mochi.
pub type Dit = Transformer<Network>;

/// The whole network.
#[derive(Debug, Clone)]
pub struct Network {
    patch_embed: PatchEmbed, // patch_embed.proj
    time_embed: TimeEmbed,
    pos_frequencies: PosFrequencies,
    blocks: Vec<Block>, // transformer_blocks
    norm_out: Norm,
    norm_out_linear: TimeProjection<2>, // scale and shift
    proj_out: Linear,
}

/// Embedding of timestep and text: `MochiCombinedTimestepCaptionEmbedding`.
#[derive(Debug, Clone)]
struct TimeEmbed {
    timestep_embedder: TimeEmbedder,
    pooler: AttentionPool,
    caption_proj: Linear,
}

impl TimeEmbed {
    fn new(config: &Config, weights: Weights) -> Result<Self> {
        let (dim, text) = (config.inner_dim(), config.text_embed_dim);
        Ok(Self {
            timestep_embedder: TimeEmbedder::new(config.time_embed_dim, dim, weights.pp("timestep_embedder"))?,
            pooler: AttentionPool::new([text, dim], POOL_HEADS, weights.pp("pooler"))?,
            caption_proj: linear(text, config.pooled_projection_dim, weights.pp("caption_proj"))?,
        })
    }
}

impl transformer::Network for Network {
    type Config = Config;
    type Block = Block;

    const DENSE_MODULES: DenseModules = DenseModules {
        keep_in_fp32: &[],
        skip_layerwise_casting: &["patch_embed", "norm"],
    };

    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let (dim, patch) = (config.inner_dim(), config.patch());
        let numbers: usize = patch.iter().product();
        let blocks = weights.pp("transformer_blocks");
        let proj = Linear::patches(
            config.in_channels,
            dim,
            &patch[1..],
            true,
            weights.pp("patch_embed.proj"),
        )?;
        Ok(Self {
            patch_embed: PatchEmbed::by(proj, patch),
            time_embed: TimeEmbed::new(config, weights.pp("time_embed"))?,
            pos_frequencies: PosFrequencies::new(config.num_attention_heads, config.attention_head_dim, weights)?,
            blocks: (0..config.num_layers)
                .map(|i| blocks.block(i, |weights| Block::new(config, i + 1 == config.num_layers, weights)))
                .collect::<Result<_>>()?,
            norm_out: Norm::plain(NormKind::Layer, dim, EPS, weights)?,
            norm_out_linear: TimeProjection::new(dim, dim, weights.pp("norm_out"))?,
            proj_out: linear(dim, numbers * config.predicted_channels(), weights.pp("proj_out"))?,
        })
    }

    fn input_spec(config: &Config) -> InputSpec {
        let channels = [config.in_channels, config.predicted_channels()];
        let text = TextShape::masked(TEXT_TOKENS, config.text_embed_dim);
        InputSpec::new(Layout::ChannelsFirst, channels, config.patch(), text)
    }

    fn embed(&self, _config: &Config, input: &Input) -> Result<State> {
        let text = &input.text; // (B, L, E)
        let time = self.time_embed.timestep_embedder.forward(&input.timestep)?; // (B, D)
        let pooled = self.time_embed.pooler.forward(&text.hidden, text.mask.as_ref())?; // (B, D)
        let context = self.time_embed.caption_proj.forward(&text.hidden)?; // (B, L, P)
        let (hidden, grid) = self.patch_embed.forward(&input.latents)?; // (B, N, D)
        let rotary = self.pos_frequencies.rotary(grid)?.before(context.dim(1)?)?;
        Ok(State {
            hidden,
            time: (time + pooled)?.unsqueeze(1)?, // (B, 1, D)
            modulation: None,
            context: Some(context),
            image: None,
            fixed: Arc::new(StaticContext::of_clip(grid, rotary, text.mask.clone())),
        })
    }

    fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn head(&self, config: &Config, state: &State) -> Result<Tensor> {
        let [scale, shift] = self.norm_out_linear.forward(&state.time)?; // (B, 1, D)
        let norm = self
            .norm_out
            .modulated(&state.hidden, &Modulation { shift, scale }, &state.fixed.parts)?; // (B, N, D)
        unpatchify(&self.proj_out.forward(&norm)?, state.fixed.grid, config.patch()) // (B, C, F, H, W)
    }
}
