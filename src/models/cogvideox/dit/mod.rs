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
mod patches;
mod positions;

pub use config::Config;
pub use positions::check as check_positions;

use crate::models::denoiser::{Input, State, StaticContext};
use crate::models::family::Layout;
use crate::models::input_spec::InputSpec;
use crate::models::transformer::{self, Transformer};
use crate::nn::embed::{Sinusoid, TimestepEmbedding};
use crate::nn::norm::Modulation;
use crate::nn::{Linear, Norm, Weights, linear};
use crate::ops::activation::silu;
use block::{Block, layer_norm};
use patches::{Projection, patchify, unpatchify};
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
    norm_out: NormOut,
    proj_out: Linear,
}

impl transformer::Network for Network {
    type Config = Config;
    type Block = Block;

    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let (dim, time) = (config.inner_dim(), config.time_embed_dim);
        let blocks = weights.pp("transformer_blocks");
        let patch_numbers = config.patch_frames() * config.patch_size * config.patch_size;
        Ok(Self {
            patch_embed: PatchEmbed::new(config, weights.pp("patch_embed"))?,
            time_embedding: TimestepEmbedding::new(dim, time, weights.pp("time_embedding"))?,
            ofs_embedding: config
                .ofs_embed_dim
                .map(|width| TimestepEmbedding::new(width, width, weights.pp("ofs_embedding")))
                .transpose()?,
            transformer_blocks: transformer::blocks(config.num_layers, blocks, |weights| Block::new(config, weights))?,
            norm_final: layer_norm(config, dim, weights.pp("norm_final"))?,
            norm_out: NormOut::new(config, weights.pp("norm_out"))?,
            proj_out: linear(dim, patch_numbers * config.out_channels, weights.pp("proj_out"))?,
        })
    }

    fn input_spec(config: &Config) -> InputSpec {
        let patch = [config.patch_frames(), config.patch_size, config.patch_size];
        InputSpec {
            ofs: config.ofs_embed_dim.is_some(),
            ..InputSpec::new(Layout::FramesFirst, config.in_channels, patch, config.text_embed_dim)
        }
    }

    /// Sines and cosines that some checkpoints store although they follow from the config.
    fn ignored_keys(&self) -> Vec<String> {
        vec!["patch_embed.pos_embedding".into()]
    }

    fn embed(&self, config: &Config, input: &Input) -> Result<State> {
        let (_, frames, _, height, width) = input.latents.dims5()?;
        let time = self.embed_time(config, input)?;
        let hidden = self.patch_embed.forward(config, &input.text.hidden, &input.latents)?; // (B, L + N, D)
        let (p, p_t) = (config.patch_size, config.patch_frames());
        let grid = [frames / p_t, height / p, width / p];
        let length = input.text.hidden.dim(1)?;
        let rotary = positions::rotary(config, grid, hidden.device())?;
        Ok(State {
            hidden,
            time,
            modulation: None,
            text: None,
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
        match (&self.ofs_embedding, &input.ofs, config.ofs_embed_dim) {
            (Some(embedding), Some(ofs), Some(width)) => {
                let angles = sinusoid(width).forward(ofs)?; // (1 or B, T)
                time.broadcast_add(&embedding.forward(&angles)?)
            }
            _ => Ok(time),
        }
    }
}

/// Maps text and latents to tokens, with absolute positions. Equals `CogVideoXPatchEmbed`.
#[derive(Debug, Clone)]
struct PatchEmbed {
    proj: Projection,
    text_proj: Linear,
    pos_embedding: Option<Added>,
}

impl PatchEmbed {
    fn new(config: &Config, weights: Weights) -> Result<Self> {
        Ok(Self {
            proj: Projection::new(config, weights.pp("proj"))?,
            text_proj: linear(config.text_embed_dim, config.inner_dim(), weights.pp("text_proj"))?,
            pos_embedding: Added::new(config, &weights)?,
        })
    }

    /// Forward pass of text (B, L, text width) and latents (B, F, C, H, W) -> (B, L + N, D)
    fn forward(&self, config: &Config, text: &Tensor, latents: &Tensor) -> Result<Tensor> {
        let (_, frames, _, height, width) = latents.dims5()?;
        let text = self.text_proj.forward(text)?; // (B, L, D)
        let video = self.proj.forward(&patchify(config, latents)?)?; // (B, N, D)
        let hidden = Tensor::cat(&[&text, &video], 1)?;
        match &self.pos_embedding {
            Some(added) => added.add(config, [frames, height, width], text.dim(1)?, &hidden),
            None => Ok(hidden),
        }
    }
}

/// Norm of the head, modulated by the timestep. Equals `AdaLayerNorm` with `chunk_dim` 1.
#[derive(Debug, Clone)]
struct NormOut {
    linear: Linear,
    norm: Norm,
}

impl NormOut {
    fn new(config: &Config, weights: Weights) -> Result<Self> {
        let dim = config.inner_dim();
        Ok(Self {
            linear: linear(config.time_embed_dim, 2 * dim, weights.pp("linear"))?,
            norm: layer_norm(config, dim, weights.pp("norm"))?,
        })
    }

    /// Forward pass (B, N, D), (B, T) -> (B, N, D)
    fn forward(&self, x: &Tensor, time: &Tensor) -> Result<Tensor> {
        let (_, tokens, dim) = x.dims3()?;
        let both = self.linear.forward(&silu(time)?)?.unsqueeze(1)?; // (B, 1, 2 D)
        let modulation = Modulation {
            shift: both.narrow(2, 0, dim)?,
            scale: both.narrow(2, dim, dim)?,
        };
        self.norm.modulated(x, &modulation, &[tokens])
    }
}
