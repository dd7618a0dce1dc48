//! Denoising transformer of HunyuanVideo, text and image to video: `HunyuanVideoTransformer3DModel`.
//!
//! The text is refined by self-attention; then clip and text pass through blocks with joint attention, at first in two
//! streams, then in one. Timestep, pooled text and guidance scale modulate every block; positions rotate the clip's tokens
//! alone. Padding behind the longest caption of a batch is cut off, since no token of the clip sees it.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, N tokens of the clip, L of the text, D
//! the model's width, P parts of the clip with a modulation each.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

mod block;
mod config;

pub use config::{Config, ImageConditionType};

use crate::models::denoiser::{Input, Scalar, State, StaticContext};
use crate::models::dense_modules::DenseModules;
use crate::models::input_spec::InputSpec;
use crate::models::latent_size::Layout;
use crate::models::text_embeds::TextShape;
use crate::models::transformer::{self, Transformer};
use crate::nn::ada_norm::TimeProjection;
use crate::nn::condition_embed::ConditionEmbed;
use crate::nn::norm::{Modulation, NormKind};
use crate::nn::patch_embed::{PatchEmbed, unpatchify_channels_first};
use crate::nn::rope::{Axis, PairLayout, Rotary};
use crate::nn::token_refiner::TokenRefiner;
use crate::nn::{Linear, Norm, Weights, linear};
use block::Block;

/// Tokens of a prompt, including padding: the pipelines' default.
pub const TEXT_TOKENS: usize = 256;

/// Epsilon of all norms.
const EPS: f64 = 1e-6;

/// Transformer of HunyuanVideo.
pub type Dit = Transformer<Network>;

/// The whole network.
#[derive(Debug, Clone)]
pub struct Network {
    x_embedder: PatchEmbed, // x_embedder.proj
    context_embedder: TokenRefiner,
    time_text_embed: ConditionEmbed,
    blocks: Vec<Block>, // transformer_blocks, single_transformer_blocks
    norm_out: Norm,
    norm_out_linear: TimeProjection<2>, // scale and shift
    proj_out: Linear,
}

impl transformer::Network for Network {
    type Config = Config;
    type Block = Block;

    const DENSE_MODULES: DenseModules = DenseModules {
        keep_in_fp32: &[],
        skip_layerwise_casting: &["x_embedder", "context_embedder", "norm"],
    };

    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let dim = config.inner_dim();
        let numbers: usize = config.patch().iter().product();
        let (dual, single) = (
            weights.pp("transformer_blocks"),
            weights.pp("single_transformer_blocks"),
        );
        let mut blocks = transformer::blocks(config.num_layers, dual, |weights| Block::dual(config, weights))?;
        blocks.extend(transformer::blocks(config.num_single_layers, single, |weights| {
            Block::single(config, weights)
        })?);
        Ok(Self {
            x_embedder: PatchEmbed::new(config.in_channels, dim, config.patch(), weights.pp("x_embedder.proj"))?,
            context_embedder: TokenRefiner::new(config.refiner(), weights.pp("context_embedder"))?,
            time_text_embed: ConditionEmbed::new(config.conditions(), weights.pp("time_text_embed"))?,
            blocks,
            norm_out: Norm::plain(NormKind::Layer, dim, EPS, weights)?,
            norm_out_linear: TimeProjection::new(dim, dim, weights.pp("norm_out"))?,
            proj_out: linear(dim, numbers * config.out_channels, weights.pp("proj_out"))?,
        })
    }

    fn input_spec(config: &Config) -> InputSpec {
        let channels = [config.in_channels, config.out_channels];
        let text = TextShape {
            pooled: Some(config.pooled_projection_dim),
            ..TextShape::masked(TEXT_TOKENS, config.text_embed_dim)
        };
        InputSpec {
            scalars: match config.guidance_embeds {
                true => &[Scalar::Guidance],
                false => &[],
            },
            frame_timesteps: config.replaces_tokens(),
            ..InputSpec::new(Layout::ChannelsFirst, channels, config.patch(), text)
        }
    }

    fn embed(&self, config: &Config, input: &Input) -> Result<State> {
        let text = &input.text; // (B, L, E)
        let (hidden, grid) = self.x_embedder.forward(&input.latents)?; // (B, N, D)
        // With token_replace the first frame is at 0, and the last frame's timestep is that of all others.
        let timestep = match input.timestep.rank() {
            1 => input.timestep.clone(),
            _ => input.timestep.narrow(1, input.timestep.dim(1)? - 1, 1)?.squeeze(1)?,
        }; // (B)
        let time = self.time(config, input, &timestep)?; // (B, P, D)
        let context = self
            .context_embedder
            .forward(&text.hidden, &timestep, text.mask.as_ref())?; // (B, L, D)
        let axes: Vec<Axis> = grid
            .into_iter()
            .zip(config.rope_axes_dim)
            .map(|(count, width)| Axis::counted(count, width))
            .collect();
        let rotary = Rotary::grid(&axes, config.rope_theta, PairLayout::Neighbours, hidden.device())?;
        let [frames, rows, columns] = grid;
        Ok(State {
            hidden,
            time,
            modulation: None,
            image: None,
            fixed: Arc::new(StaticContext {
                grid,
                parts: match config.replaces_tokens() {
                    true => vec![rows * columns, (frames - 1) * rows * columns],
                    false => vec![frames * rows * columns],
                },
                rotary: Some(rotary.before(text.hidden.dim(1)?)?),
                text_mask: text.mask.clone(),
            }),
            context: Some(context),
        })
    }

    fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    fn head(&self, config: &Config, state: &State) -> Result<Tensor> {
        let last = state.time.dim(1)? - 1;
        let [scale, shift] = self.norm_out_linear.forward(&state.time.narrow(1, last, 1)?)?; // (B, 1, D)
        let parts = [state.hidden.dim(1)?];
        let norm = self
            .norm_out
            .modulated(&state.hidden, &Modulation { shift, scale }, &parts)?; // (B, N, D)
        unpatchify_channels_first(&self.proj_out.forward(&norm)?, state.fixed.grid, config.patch()) // (B, C, F, H, W)
    }
}

impl Network {
    /// Returns the modulation's source (B, P, D): with `token_replace` first that of timestep 0, which knows no guidance.
    fn time(&self, config: &Config, input: &Input, timestep: &Tensor) -> Result<Tensor> {
        let pooled = input.text.pooled.as_ref().expect("the input was checked");
        let scales = input.scalars.get(Scalar::Guidance);
        let time = self.time_text_embed.forward(timestep, pooled, scales)?; // (B, D)
        if !config.replaces_tokens() {
            return time.unsqueeze(1);
        }
        let start = timestep.to_dtype(DType::F32)?.zeros_like()?;
        let start = self.time_text_embed.forward(&start, pooled, None)?; // (B, D)
        Tensor::stack(&[start, time], 1) // (B, 2, D)
    }
}
