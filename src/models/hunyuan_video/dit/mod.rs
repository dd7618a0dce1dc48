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
mod refiner;

pub use config::{Config, ImageConditionType};

use crate::models::denoiser::{Input, Scalar, State, StaticContext};
use crate::models::dense_modules::DenseModules;
use crate::models::input_spec::InputSpec;
use crate::models::latent_size::Layout;
use crate::models::text_embeds::TextShape;
use crate::models::transformer::{self, Transformer};
use crate::nn::ada_norm::TimeProjection;
use crate::nn::embed::{TimeEmbedder, TimestepEmbedding};
use crate::nn::norm::{Modulation, NormKind};
use crate::nn::patch_embed::PatchEmbed;
use crate::nn::rope::{Axis, PairLayout, Rotary};
use crate::nn::{Linear, Norm, Weights, linear};
use block::Block;
use refiner::TokenRefiner;

/// Tokens of a prompt, including padding: the pipelines' default.
pub const TEXT_TOKENS: usize = 256;

/// Sines and cosines of a timestep.
const TIME_WIDTH: usize = 256;

/// Epsilon of all norms.
const EPS: f64 = 1e-6;

/// Timesteps per unit of the guidance scale, where that is embedded like one.
const GUIDANCE_SCALE: f64 = 1000.0;

/// Transformer of HunyuanVideo.
pub type Dit = Transformer<Network>;

/// The whole network.
#[derive(Debug, Clone)]
pub struct Network {
    x_embedder: PatchEmbed, // x_embedder.proj
    context_embedder: TokenRefiner,
    time_text_embed: ConditionEmbedding,
    blocks: Vec<Block>, // transformer_blocks, single_transformer_blocks
    norm_out: Norm,
    norm_out_linear: TimeProjection<2>, // scale and shift
    proj_out: Linear,
}

/// Embedding of timestep, pooled text and guidance scale. Equals `HunyuanVideoConditionEmbedding`.
#[derive(Debug, Clone)]
struct ConditionEmbedding {
    timestep_embedder: TimeEmbedder,
    text_embedder: TimestepEmbedding,
    guidance_embedder: Option<TimeEmbedder>,
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
            context_embedder: TokenRefiner::new(config, weights.pp("context_embedder"))?,
            time_text_embed: ConditionEmbedding::new(config, weights.pp("time_text_embed"))?,
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
            ..InputSpec::new(Layout::ChannelsFirst, channels, config.patch(), text)
        }
    }

    fn embed(&self, config: &Config, input: &Input) -> Result<State> {
        let (text, text_mask) = trimmed(&input.text.hidden, input.text.mask.as_ref())?; // (B, L, E), (B, L)
        let (hidden, grid) = self.x_embedder.forward(&input.latents)?; // (B, N, D)
        let time = self.time_text_embed.forward(config, input)?; // (B, P, D)
        let context = self
            .context_embedder
            .forward(&text, &input.timestep, text_mask.as_ref())?; // (B, L, D)
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
                rotary: Some(rotary.before(text.dim(1)?)?),
                text_mask,
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
        unpatchify(config, &self.proj_out.forward(&norm)?, state.fixed.grid) // (B, C, F, H, W)
    }
}

impl ConditionEmbedding {
    fn new(config: &Config, weights: Weights) -> Result<Self> {
        let dim = config.inner_dim();
        let embedder = |name: &str| TimeEmbedder::new(TIME_WIDTH, dim, weights.pp(name));
        Ok(Self {
            timestep_embedder: embedder("timestep_embedder")?,
            text_embedder: TimestepEmbedding::new(config.pooled_projection_dim, dim, weights.pp("text_embedder"))?,
            guidance_embedder: config
                .guidance_embeds
                .then(|| embedder("guidance_embedder"))
                .transpose()?,
        })
    }

    /// Returns the modulation's source (B, P, D): with `token_replace` first that of timestep 0, which knows no guidance.
    fn forward(&self, config: &Config, input: &Input) -> Result<Tensor> {
        let pooled = input.text.pooled.as_ref().expect("the input was checked");
        let pooled = self.text_embedder.forward(pooled)?; // (B, D)
        let mut time = (self.timestep_embedder.forward(&input.timestep)? + &pooled)?; // (B, D)
        if let (Some(embedder), Some(scales)) = (&self.guidance_embedder, input.scalars.get(Scalar::Guidance)) {
            // In f32, since bf16 has no 6000.
            let scales: Vec<f32> = scales.iter().map(|scale| (scale * GUIDANCE_SCALE) as f32).collect();
            time = time.broadcast_add(&embedder.forward(&Tensor::new(scales, time.device())?)?)?; // (B, D)
        }
        if !config.replaces_tokens() {
            return time.unsqueeze(1);
        }
        let start = input.timestep.to_dtype(DType::F32)?.zeros_like()?;
        let start = (self.timestep_embedder.forward(&start)? + pooled)?; // (B, D)
        Tensor::stack(&[start, time], 1) // (B, 2, D)
    }
}

/// Cuts off what is padding in every caption: (B, L, E) and (B, L); no mask if nothing of the rest is.
fn trimmed(text: &Tensor, mask: Option<&Tensor>) -> Result<(Tensor, Option<Tensor>)> {
    let Some(mask) = mask else {
        return Ok((text.clone(), None));
    };
    let own: Vec<Vec<f32>> = mask.to_dtype(DType::F32)?.to_vec2()?;
    let length = |row: &Vec<f32>| row.iter().rposition(|own| *own != 0.0).map_or(0, |last| last + 1);
    let longest = own.iter().map(length).max().unwrap_or(0).max(1);
    let (text, mask) = (text.narrow(1, 0, longest)?, mask.narrow(1, 0, longest)?);
    let full = own.iter().all(|row| row[..longest].iter().all(|own| *own != 0.0));
    Ok((text, (!full).then_some(mask)))
}

/// Returns what is added to the scores of keys (B, 1, 1, N + L): minus infinity for padding; None without any.
fn mask(state: &State) -> Result<Option<Tensor>> {
    let Some(mask) = &state.fixed.text_mask else {
        return Ok(None);
    };
    let (batch, length) = mask.dims2()?;
    let away = Tensor::full(f32::NEG_INFINITY, (batch, length), mask.device())?;
    let bias = mask.ne(0f32)?.where_cond(&mask.zeros_like()?, &away)?; // (B, L)
    let bias = bias.pad_with_zeros(1, state.hidden.dim(1)?, 0)?; // (B, N + L)
    Ok(Some(bias.unsqueeze(1)?.unsqueeze(1)?))
}

/// Joins (B, N, C p_t p p) -> (B, C, F, H, W) for a `grid` of F/p_t, H/p, W/p tokens
fn unpatchify(config: &Config, tokens: &Tensor, [t, h, w]: [usize; 3]) -> Result<Tensor> {
    let (batch, channels, [p_t, p, _]) = (tokens.dim(0)?, config.out_channels, config.patch());
    tokens
        .reshape(vec![batch, t, h, w, channels, p_t, p, p])?
        .permute([0, 4, 1, 5, 2, 6, 3, 7])? // (B, C, t, p_t, h, p, w, p)
        .reshape((batch, channels, t * p_t, h * p, w * p))
}
