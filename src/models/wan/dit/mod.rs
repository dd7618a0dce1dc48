//! The denoising transformer of Wan 2.1, text and image to video: `WanTransformer3DModel`.
//!
//! Patches run through N blocks that attend to themselves and across to the text and, in image to video, to what an image
//! encoder says of the image; what the VAE says of it comes behind the clip's channels. The stem makes the modulation of
//! all blocks from the timestep, to which each adds a table of its own.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, N tokens, L text tokens, M image
//! tokens, D the model's width.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Device, Error, Result, Tensor};

mod block;
mod condition;
mod config;
mod patches;

pub use config::Config;

use crate::models::denoiser::{Denoiser, Fixed, Input, State};
use crate::nn::norm::{Kind, Modulation};
use crate::nn::rope::{Axis, Pairs, Rotary, THETA};
use crate::nn::weights::Planter;
use crate::nn::{Linear, Norm, ScaleShiftTable, Weights, linear};
use block::Block;
use condition::ConditionEmbedder;
use patches::{PatchEmbedding, unpatchify};

/// The whole network.
#[derive(Debug, Clone)]
pub struct Dit {
    config: Config,
    dtype: DType,
    patch_embedding: PatchEmbedding,
    condition_embedder: ConditionEmbedder,
    blocks: Vec<Block>,
    scale_shift_table: ScaleShiftTable<2>,
    norm_out: Norm,
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
        // Published models that attend to an image hold a norm of queries that are not there.
        let stray: Vec<String> = (0..dit.blocks.len())
            .map(|i| format!("blocks.{i}.attn2.norm_added_q."))
            .collect();
        weights.finish(&stray.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(dit)
    }

    /// Takes its tensors from `weights`, whose root is the transformer's.
    pub fn new(config: Config, weights: &Weights) -> Result<Self> {
        let dim = config.inner_dim();
        let blocks = weights.pp("blocks");
        let patch_numbers: usize = config.patch_size.iter().product();
        Ok(Self {
            dtype: weights.dtype(),
            patch_embedding: PatchEmbedding::new(&config, weights.pp("patch_embedding"))?,
            condition_embedder: ConditionEmbedder::new(&config, weights.pp("condition_embedder"))?,
            blocks: (0..config.num_layers)
                .map(|i| Block::new(&config, blocks.pp(i)))
                .collect::<Result<_>>()?,
            scale_shift_table: ScaleShiftTable::new((1, 2, dim), weights)?,
            norm_out: Norm::plain(Kind::Layer, dim, config.eps, weights)?,
            proj_out: linear(dim, patch_numbers * config.predicted_channels(), weights.pp("proj_out"))?,
            config,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Refuses what the network has no place for, before candle says it in shapes alone.
    fn check(&self, input: &Input) -> Result<()> {
        let config = &self.config;
        let (batch, channels, frames, height, width) = input.latents.dims5()?;
        let (text_batch, _, text_width) = input.text.hidden.dims3()?;
        let refuse = |what: String| Err(Error::Msg(what));
        if channels != config.in_channels {
            return refuse(format!(
                "latents of {channels} channels for a model of {} (in image to video a mask and the image's latents come \
                 behind the clip's)",
                config.in_channels
            ));
        }
        let sizes = [("frames", frames), ("rows", height), ("columns", width)];
        for ((what, size), patch) in sizes.into_iter().zip(config.patch_size) {
            if size == 0 || !size.is_multiple_of(patch) {
                return refuse(format!("{size} latent {what} do not fall into patches of {patch}"));
            }
            if size / patch > config.rope_max_seq_len {
                return refuse(format!(
                    "{size} latent {what} are more than the {} patches of {patch} that this model has positions for",
                    config.rope_max_seq_len
                ));
            }
        }
        if text_width != config.text_dim {
            return refuse(format!("text of width {text_width} for a model of {}", config.text_dim));
        }
        let timesteps = input.timestep.dims();
        if text_batch != batch || timesteps != [batch] {
            return refuse(format!(
                "{batch} clips, {text_batch} texts and timesteps {timesteps:?}: one for each clip is needed"
            ));
        }
        if input.text.mask.is_some() || input.ofs.is_some() {
            return refuse("this model has no place for a text mask or ofs".into());
        }
        self.check_image(batch, input.image.as_ref())
    }

    fn check_image(&self, batch: usize, image: Option<&Tensor>) -> Result<()> {
        let refuse = |what: String| Err(Error::Msg(what));
        match (image, self.config.image_dim) {
            (None, None) => Ok(()),
            (None, Some(_)) => refuse("this model needs an encoded image".into()),
            (Some(_), None) => refuse("this model has no place for an encoded image".into()),
            (Some(image), Some(width)) => {
                let (images, tokens, image_width) = image.dims3()?;
                let wanted = self.config.pos_embed_seq_len.unwrap_or(tokens);
                if (images, tokens, image_width) != (batch, wanted, width) {
                    return refuse(format!(
                        "encoded images {:?} for {batch} clips and a model of {wanted} tokens of width {width}",
                        image.dims()
                    ));
                }
                Ok(())
            }
        }
    }

    /// How tokens on a grid turn: a third of a head's features, rounded, by the row, as many by the column, the rest by the
    /// frame. Equals `WanRotaryPosEmbed`.
    fn rotary(&self, grid: [usize; 3], device: &Device) -> Result<Rotary> {
        let space = self.config.attention_head_dim / 6 * 2;
        let widths = [self.config.attention_head_dim - 2 * space, space, space];
        let axis = |(count, width): (usize, usize)| Axis {
            positions: (0..count).map(|i| i as f32).collect(),
            width,
        };
        let axes: Vec<Axis> = grid.into_iter().zip(widths).map(axis).collect();
        Rotary::grid(&axes, THETA, Pairs::Neighbours, device)
    }
}

impl Denoiser for Dit {
    fn stem(&self, input: &Input) -> Result<State> {
        self.check(input)?;
        let latents = input.latents.to_dtype(self.dtype)?;
        let (hidden, grid) = self.patch_embedding.forward(&self.config, &latents)?; // (B, N, D)
        let (time, modulation) = self.condition_embedder.time(&input.timestep)?; // (B, 1, D), (B, 1, 6, D)
        let rotary = self.rotary(grid, hidden.device())?;
        Ok(State {
            hidden,
            time,
            modulation: Some(modulation),
            text: Some(self.condition_embedder.text(&input.text.hidden)?), // (B, L, D)
            image: self.condition_embedder.image(input.image.as_ref())?,   // (B, M, D)
            fixed: Arc::new(Fixed {
                grid,
                parts: vec![grid.iter().product()],
                rotary: Some(rotary),
                text_mask: None,
            }),
        })
    }

    fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(&self, index: usize, state: &State) -> Result<State> {
        match self.blocks.get(index) {
            Some(block) => block.forward(state),
            None => Err(Error::Msg(format!("no block {index} of {}", self.num_blocks()))),
        }
    }

    fn head(&self, state: &State) -> Result<Tensor> {
        let [shift, scale] = self.scale_shift_table.rows(&state.time.unsqueeze(2)?)?; // (B, 1, D)
        let hidden = self
            .norm_out
            .modulated(&state.hidden, &Modulation { shift, scale }, &state.fixed.parts)?;
        unpatchify(&self.config, &self.proj_out.forward(&hidden)?, state.fixed.grid) // (B, C, F, H, W)
    }
}
