//! The denoising transformer of CogVideoX 2b, 5b, 1.5 and their image-to-video kin: `CogVideoXTransformer3DModel`.
//!
//! Patches and text tokens, each embedded by a matrix, run through N blocks of joint attention; the timestep (and, in the
//! I2V model of 1.5, a number `ofs`) modulates every one; the head turns video tokens back into latents.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, L text tokens, N video tokens, D the
//! model's width, T the time's.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Device, Error, Result, Tensor};

mod block;
mod config;
mod patches;
mod positions;

pub use config::Config;

use crate::models::denoiser::{Denoiser, Fixed, Input, State};
use crate::nn::embed::{Sinusoid, TimestepEmbedding};
use crate::nn::norm::Modulation;
use crate::nn::weights::Planter;
use crate::nn::{Linear, Norm, Weights, linear};
use crate::ops::activation::silu;
use block::{Block, layer_norm};
use patches::{Projection, patchify, unpatchify};
use positions::Added;

/// The sines and cosines that some checkpoints hold although they follow from the config.
const POSITIONS: &str = "patch_embed.pos_embedding";

/// The whole network.
#[derive(Debug, Clone)]
pub struct Dit {
    config: Config,
    dtype: DType,
    patch_embed: PatchEmbed,
    time_embedding: TimestepEmbedding,
    ofs_embedding: Option<TimestepEmbedding>,
    transformer_blocks: Vec<Block>,
    norm_final: Norm,
    norm_out: NormOut,
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
        weights.finish(&[POSITIONS])?;
        Ok(dit)
    }

    /// Takes its tensors from `weights`, whose root is the transformer's.
    pub fn new(config: Config, weights: &Weights) -> Result<Self> {
        let (dim, time) = (config.inner_dim(), config.time_embed_dim);
        let blocks = weights.pp("transformer_blocks");
        let patch_numbers = config.patch_frames() * config.patch_size * config.patch_size;
        Ok(Self {
            dtype: weights.dtype(),
            patch_embed: PatchEmbed::new(&config, weights.pp("patch_embed"))?,
            time_embedding: TimestepEmbedding::new(dim, time, weights.pp("time_embedding"))?,
            ofs_embedding: config
                .ofs_embed_dim
                .map(|width| TimestepEmbedding::new(width, width, weights.pp("ofs_embedding")))
                .transpose()?,
            transformer_blocks: (0..config.num_layers)
                .map(|i| Block::new(&config, blocks.pp(i)))
                .collect::<Result<_>>()?,
            norm_final: layer_norm(&config, dim, weights.pp("norm_final"))?,
            norm_out: NormOut::new(&config, weights.pp("norm_out"))?,
            proj_out: linear(dim, patch_numbers * config.out_channels, weights.pp("proj_out"))?,
            config,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The timestep, and `ofs` where the model knows it: (B, T)
    fn embed_time(&self, input: &Input) -> Result<Tensor> {
        let sinusoid = |width| Sinusoid {
            width,
            flip_sin_to_cos: self.config.flip_sin_to_cos,
            freq_shift: self.config.freq_shift,
        };
        let angles = sinusoid(self.config.inner_dim()).forward(&input.timestep)?; // (B, D)
        let time = self.time_embedding.forward(&angles.to_dtype(self.dtype)?)?; // (B, T)
        match (&self.ofs_embedding, &input.ofs, self.config.ofs_embed_dim) {
            (Some(embedding), Some(ofs), Some(width)) => {
                let angles = sinusoid(width).forward(ofs)?; // (1 or B, T)
                time.broadcast_add(&embedding.forward(&angles.to_dtype(self.dtype)?)?)
            }
            _ => Ok(time),
        }
    }

    /// Refuses what the network has no place for, before candle says it in shapes alone.
    fn check(&self, input: &Input) -> Result<()> {
        let config = &self.config;
        let (batch, frames, channels, height, width) = input.latents.dims5()?;
        let (text_batch, _, text_width) = input.text.hidden.dims3()?;
        let refuse = |what: String| Err(Error::Msg(what));
        if channels != config.in_channels {
            return refuse(format!(
                "latents of {channels} channels for a model of {} (in image to video the image's latents come behind \
                 the clip's)",
                config.in_channels
            ));
        }
        for (what, size, patch) in [
            ("frames", frames, config.patch_frames()),
            ("rows", height, config.patch_size),
            ("columns", width, config.patch_size),
        ] {
            if size == 0 || !size.is_multiple_of(patch) {
                return refuse(format!("{size} latent {what} do not fall into patches of {patch}"));
            }
        }
        if text_width != config.text_embed_dim {
            return refuse(format!(
                "text of width {text_width} for a model of {}",
                config.text_embed_dim
            ));
        }
        let timesteps = input.timestep.dims1()?;
        if text_batch != batch || timesteps != batch {
            return refuse(format!("{batch} clips, {text_batch} texts and {timesteps} timesteps"));
        }
        match (&input.ofs, self.config.ofs_embed_dim) {
            (None, Some(_)) => refuse("this model needs ofs; its pipeline gives 2.0".into()),
            (Some(_), None) => refuse("this model has no ofs".into()),
            (Some(ofs), Some(_)) if ![1, batch].contains(&ofs.dims1()?) => {
                refuse(format!("{batch} clips and {} ofs", ofs.elem_count()))
            }
            _ => Ok(()),
        }
    }
}

impl Denoiser for Dit {
    fn stem(&self, input: &Input) -> Result<State> {
        self.check(input)?;
        let (_, frames, _, height, width) = input.latents.dims5()?;
        let time = self.embed_time(input)?;
        let latents = input.latents.to_dtype(self.dtype)?;
        let text = input.text.hidden.to_dtype(self.dtype)?;
        let hidden = self.patch_embed.forward(&self.config, &text, &latents)?; // (B, L + N, D)
        let (p, p_t) = (self.config.patch_size, self.config.patch_frames());
        let grid = [frames / p_t, height / p, width / p];
        let length = text.dim(1)?;
        let rotary = positions::rotary(&self.config, grid, hidden.device())?;
        Ok(State {
            hidden,
            time,
            modulation: None,
            text: None,
            image: None,
            fixed: Arc::new(Fixed {
                grid,
                parts: vec![length, grid.iter().product()],
                rotary: rotary.map(|rotary| rotary.behind(length)),
                text_mask: None,
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
        let hidden = self.norm_final.forward(&state.video()?)?;
        let hidden = self.norm_out.forward(&hidden, &state.time)?;
        let patches = self.proj_out.forward(&hidden)?; // (B, N, C p_t p p)
        unpatchify(&self.config, &patches, state.fixed.grid) // (B, F, C, H, W)
    }
}

/// Text and latents to tokens, with what positions are added. Equals `CogVideoXPatchEmbed`.
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

    /// Text (B, L, text width), latents (B, F, C, H, W) -> (B, L + N, D)
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

/// The head's norm, modulated by the timestep. Equals `AdaLayerNorm` with `chunk_dim` 1.
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

    /// (B, N, D), (B, T) -> (B, N, D)
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
