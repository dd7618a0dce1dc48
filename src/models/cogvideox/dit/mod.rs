//! Denoising transformer of CogVideoX 2b, 5b, 1.5 and their image-to-video variants: `CogVideoXTransformer3DModel`.
//!
//! Patches and text tokens, each embedded by a matrix, pass through N blocks of joint attention; the timestep (and, in
//! the I2V model of 1.5, a number `ofs`) modulates each; the head maps video tokens back to latents.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, L text tokens, N video tokens, D
//! the model's width, T the time's.

use std::sync::Arc;

use candle_core::{Result, Tensor};

mod block;
mod config;
mod positions;

pub use config::Config;
pub use positions::check as check_positions;

use crate::models::denoiser::{Input, Scalar, State, StaticContext};
use crate::models::input_spec::InputSpec;
use crate::models::latent_size::Layout;
use crate::models::text_embeds::TextShape;
use crate::models::transformer::{self, Transformer};
use crate::nn::ada_norm::AdaLayerNorm;
use crate::nn::embed::{Sinusoid, TimestepEmbedding};
use crate::nn::{Linear, Norm, Weights, linear, patch_embed};
use crate::ops::join::join;
use block::{Block, layer_norm};
use positions::Added;

/// Transformer of CogVideoX.
pub type Dit = Transformer<Network>;

/// The whole network.
#[derive(Debug, Clone)]
pub struct Network {
    patch_embed: PatchEmbed,
    time_embedding: TimestepEmbedding,
    ofs_embedding: Option<TimestepEmbedding>,
    transformer_blocks: Vec<Block>,
    norm_final: Norm,
    norm_out: AdaLayerNorm,
    proj_out: Linear,
}

impl transformer::Network for Network {
    type Config = Config;
    type Block = Block;

    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let (dim, time) = (config.inner_dim(), config.time_embed_dim);
        let (blocks, norm_out) = (weights.pp("transformer_blocks"), weights.pp("norm_out"));
        let patch_numbers: usize = config.patch().iter().product();
        Ok(Self {
            patch_embed: PatchEmbed::new(config, weights.pp("patch_embed"))?,
            time_embedding: TimestepEmbedding::new(dim, time, weights.pp("time_embedding"))?,
            ofs_embedding: config
                .ofs_embed_dim
                .map(|width| TimestepEmbedding::new(width, width, weights.pp("ofs_embedding")))
                .transpose()?,
            transformer_blocks: transformer::blocks(config.num_layers, blocks, |weights| Block::new(config, weights))?,
            norm_final: layer_norm(config, weights.pp("norm_final"))?,
            norm_out: AdaLayerNorm::new([time, dim], layer_norm(config, norm_out.pp("norm"))?, norm_out)?,
            proj_out: linear(dim, patch_numbers * config.out_channels, weights.pp("proj_out"))?,
        })
    }

    fn input_spec(config: &Config) -> InputSpec {
        let channels = [config.in_channels, config.out_channels];
        let text = TextShape::new(config.max_text_seq_length, config.text_embed_dim);
        InputSpec {
            scalars: if config.ofs_embed_dim.is_some() {
                &[Scalar::Ofs]
            } else {
                &[]
            },
            ..InputSpec::new(Layout::FramesFirst, channels, config.patch(), text)
        }
    }

    /// Sines and cosines that some checkpoints store although they follow from the config.
    fn ignored_keys(&self) -> Vec<String> {
        vec!["patch_embed.pos_embedding".into()]
    }

    fn embed(&self, config: &Config, input: &Input) -> Result<State> {
        let time = self.embed_time(config, input)?;
        let (hidden, grid) = self.patch_embed.forward(config, &input.text.hidden, &input.latents)?; // (B, L + N, D)
        let length = input.text.hidden.dim(1)?;
        let rotary = positions::rotary(config, grid, hidden.device())?;
        Ok(State {
            hidden,
            time,
            modulation: None,
            context: None,
            image: None,
            fixed: Arc::new(StaticContext {
                grid,
                parts: vec![length, grid.iter().product()],
                rotary: rotary.map(|rotary| rotary.behind(length)),
                text_mask: None,
            }),
        })
    }

    fn blocks(&self) -> &[Block] {
        &self.transformer_blocks
    }

    fn head(&self, config: &Config, state: &State) -> Result<Tensor> {
        let hidden = self.norm_final.forward(&state.video()?)?;
        let hidden = self.norm_out.forward(&hidden, &state.time)?;
        let patches = self.proj_out.forward(&hidden)?; // (B, N, C p_t p p)
        unpatchify(config, &patches, state.fixed.grid) // (B, F, C, H, W)
    }
}

impl Network {
    /// Embeds the timestep, and `ofs` if the model has it: (B, T)
    fn embed_time(&self, config: &Config, input: &Input) -> Result<Tensor> {
        let sinusoid = |width| Sinusoid {
            width,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        };
        let angles = sinusoid(config.inner_dim()).forward(&input.timestep)?; // (B, D)
        let time = self.time_embedding.forward(&angles)?; // (B, T)
        match (
            &self.ofs_embedding,
            input.scalars.get(Scalar::Ofs),
            config.ofs_embed_dim,
        ) {
            (Some(embedding), Some(ofs), Some(width)) => {
                let ofs: Vec<f32> = ofs.iter().map(|ofs| *ofs as f32).collect();
                let angles = sinusoid(width).forward(&Tensor::new(ofs, time.device())?)?; // (1 or B, T)
                time.broadcast_add(&embedding.forward(&angles)?)
            }
            _ => Ok(time),
        }
    }
}

/// Maps text and latents to tokens, with absolute positions. Equals `CogVideoXPatchEmbed`: 1.0 embeds patches of single
/// frames by a convolution, 1.5 deeper ones by a linear layer.
#[derive(Debug, Clone)]
struct PatchEmbed {
    proj: patch_embed::PatchEmbed,
    text_proj: Linear,
    pos_embedding: Option<Added>,
}

impl PatchEmbed {
    fn new(config: &Config, weights: Weights) -> Result<Self> {
        let (channels, dim, proj) = (config.in_channels, config.inner_dim(), weights.pp("proj"));
        let numbers = channels * config.patch().iter().product::<usize>();
        let proj = match config.patch_size_t {
            None => Linear::patches(channels, dim, &[config.patch_size; 2], config.patch_bias, proj)?,
            Some(_) => linear(numbers, dim, proj)?,
        };
        Ok(Self {
            proj: patch_embed::PatchEmbed::by(proj, config.patch()),
            text_proj: linear(config.text_embed_dim, dim, weights.pp("text_proj"))?,
            pos_embedding: Added::new(config, &weights)?,
        })
    }

    /// Forward pass of text (B, L, text width) and latents (B, F, C, H, W) -> (B, L + N, D), and the `grid` of tokens
    fn forward(&self, config: &Config, text: &Tensor, latents: &Tensor) -> Result<(Tensor, [usize; 3])> {
        let (_, frames, _, height, width) = latents.dims5()?;
        let text = self.text_proj.forward(text)?; // (B, L, D)
        let (video, grid) = self.proj.forward(&latents.transpose(1, 2)?)?; // (B, N, D)
        let hidden = join(&text, &video, 1)?;
        let hidden = match &self.pos_embedding {
            Some(added) => added.add(config, [frames, height, width], text.dim(1)?, &hidden)?,
            None => hidden,
        };
        Ok((hidden, grid))
    }
}

/// Joins (B, N, C p_t p p) -> (B, F, C, H, W) for a `grid` of F/p_t, H/p, W/p tokens
fn unpatchify(config: &Config, tokens: &Tensor, grid: [usize; 3]) -> Result<Tensor> {
    let (batch, channels, [p_t, p, _]) = (tokens.dim(0)?, config.out_channels, config.patch());
    let [t, h, w] = grid;
    tokens
        .reshape(vec![batch, t, h, w, channels, p_t, p, p])?
        .permute([0, 1, 5, 4, 2, 6, 3, 7])? // (B, F/p_t, p_t, C, H/p, p, W/p, p)
        .reshape((batch, t * p_t, channels, h * p, w * p))
}
