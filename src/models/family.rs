//! Interface of a model family to sampling and training. Each family implements it in its own folder.
//!
//! A [`Family`] is a checkpoint's configs; its parts are loaded on demand, as a [`Load`] says, and freed when dropped:
//! the text encoder is dropped before the transformer loads, the transformer before the VAE.
//!
//! Shapes: B samples, F latent frames, C latent channels, h and w latent rows and columns, L text tokens, D text width;
//! T, H and W a clip's frames, rows and columns.

use std::fmt;
use std::path::Path;

use anyhow::ensure;
use candle_core::{DType, Tensor};

pub use super::autoencoder::VaeCost;
pub use super::checkpoint_dir::CheckpointDir;
pub use super::conditions::{ConcatCondition, Conditions, ImageCondition, ImageMode};
pub use super::denoiser::{Denoiser, Scalar, Scalars};
pub use super::dense_modules::DenseModules;
pub use super::encoders::{Emit, TextEncoder, VideoDecoder, VideoEncoder, posterior_from};
pub use super::footprint::Footprint;
pub use super::gguf_spec::GgufSpec;
pub use super::latent_size::{LatentSize, Layout, check_all, check_num_frames, check_patchable, check_whole_frames};
pub use super::text_embeds::{TensorSpecs, TextEmbeds, TextShape};
pub use super::tiling::Tiling;
pub use super::vae::{FirstFrame, Parts};

use super::FamilyName;
use super::checkpoint_dir::part;
use super::synthetic::SyntheticSpec;
use super::t5_conditioner::T5Conditioner;
use crate::diffusion::guidance::GuidanceMode;
use crate::diffusion::schedulers::{Scheduler, StepSpacing};
use crate::lora::names::Names;
use crate::nn::{Load, WeightFolder};
use crate::rng::Rng;

/// Way to load adapters into a pipeline of diffusers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoraLoading {
    /// `load_lora_weights`.
    Pipeline,
    /// The pipeline has no such method: PEFT puts them into the transformer.
    Peft,
}

/// Facts about a family that need no checkpoint; each family declares them in its `mod.rs`.
pub struct FamilySpec {
    /// Name in run files.
    pub name: FamilyName,
    /// Display name.
    pub title: &'static str,
    /// Names of its layers, in diffusers and elsewhere.
    pub names: &'static Names,
    /// Prefix of the `_class_name` of its pipelines in `model_index.json`.
    pub pipeline: &'static str,
    /// Pipelines of diffusers that load a checkpoint, for text and for image input.
    pub pipelines: [&'static str; 2],
    /// Way that they load adapters.
    pub lora_loading: LoraLoading,
    /// `_class_name` in `transformer/config.json`.
    pub transformer: &'static str,
    /// Substring of the names of its published repositories, in lower case.
    pub repository: &'static str,
    /// Default frames per second of clips.
    pub frame_rate: f64,
    /// Encoding sizes of the published checkpoints.
    pub footprint: Footprint,
    /// Returns true for a scheduler that fits the family.
    pub takes_scheduler: fn(&Scheduler) -> bool,
    /// Names of the schedulers that do, for messages.
    pub schedulers: &'static str,
    /// Opens a checkpoint of the family.
    pub open: Open,
    /// Opens the transformer alone.
    pub synthetic: OpenSynthetic,
    /// Modules of the transformer that stay dense.
    pub dense_modules: DenseModules,
    /// Its GGUF files; None if no program reads any.
    pub gguf: Option<GgufSpec>,
}

/// Opens a checkpoint by its directory.
pub type Open = fn(&CheckpointDir) -> anyhow::Result<Box<dyn Family>>;

/// Reads the config of a transformer in a folder.
pub type OpenSynthetic = fn(&Path) -> anyhow::Result<SyntheticSpec>;

impl fmt::Debug for FamilySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.title)
    }
}

/// Facts about a checkpoint, known from its configs.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// Its family.
    pub family: &'static FamilySpec,
    /// Its folder, with the requested variant of its weights.
    pub directory: WeightFolder,
    /// Sizes of its encodings.
    pub footprint: Footprint,
    /// Folders of the text encoder.
    pub text_encoder_parts: &'static [&'static str],
    /// Folders of the video encoder.
    pub video_encoder_parts: &'static [&'static str],
    /// Tiles for large frames in the autoencoder; None if those of its settings do not line up.
    pub tiling: Option<Tiling>,
    /// Use of an image.
    pub image_mode: ImageMode,
    /// Tensors of a clip's image in its record, for checkpoints that always start from one.
    pub image_record: ImageRecord,
    /// True if latents are f32 between steps; else they have the type of the weights.
    pub f32_latents: bool,
    /// True if the text encoder sees the image to start from.
    pub sees_pictures: bool,
    /// Use of a guidance scale.
    pub guidance: GuidanceMode,
    /// Spacing of sampling's steps by the pipeline.
    pub step_spacing: StepSpacing,
    /// True if an empty prompt has no tokens, not even that of its end.
    pub empty_prompts_have_no_tokens: bool,
}

impl ModelSpec {
    /// Facts of a checkpoint of text to video, with T5 and a VAE.
    pub fn new(family: &'static FamilySpec, directory: &WeightFolder, footprint: Footprint) -> Self {
        Self {
            family,
            directory: directory.clone(),
            footprint,
            text_encoder_parts: T5Conditioner::PARTS,
            video_encoder_parts: &["vae"],
            tiling: None,
            image_mode: ImageMode::Never,
            image_record: ImageRecord::None,
            f32_latents: true,
            sees_pictures: false,
            guidance: GuidanceMode::ClassifierFree,
            step_spacing: StepSpacing::OfScheduler,
            empty_prompts_have_no_tokens: false,
        }
    }

    /// Returns the folder of a part, which must exist.
    pub fn part(&self, name: &str) -> anyhow::Result<WeightFolder> {
        part(&self.directory, name)
    }

    /// Returns the size of every embedded prompt.
    pub fn text(&self) -> TextShape {
        self.footprint.text
    }

    /// Returns the diffusers class that loads the checkpoint, for text or image input.
    pub fn pipeline(&self, from_image: bool) -> &'static str {
        self.family.pipelines[usize::from(from_image)]
    }

    /// Returns the type of latents between steps.
    pub fn latent_dtype(&self, load: &Load) -> DType {
        if self.f32_latents { DType::F32 } else { load.dtype }
    }
}

/// Tensors of an image in a clip's record, in the order of `VideoEncoder::encode_image`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageRecord {
    /// None.
    None,
    /// Mean and log-variance of the first latent frame.
    Posterior,
    /// Latents of a whole clip, and these image tokens of this width.
    LatentsAndTokens([usize; 2]),
}

impl ImageRecord {
    /// Returns the names and shapes.
    pub fn tensors(self, size: &LatentSize) -> TensorSpecs {
        let [channels, frames, height, width] = size.encoded();
        let latents = |frames| vec![channels, frames, height, width];
        match self {
            Self::None => Vec::new(),
            Self::Posterior => vec![("image_mean", latents(1)), ("image_logvar", latents(1))],
            Self::LatentsAndTokens(tokens) => {
                vec![("image_latents", latents(frames)), ("image_tokens", tokens.to_vec())]
            }
        }
    }
}

/// A checkpoint of a family.
pub trait Family {
    /// Returns its facts.
    fn spec(&self) -> &ModelSpec;

    /// Returns the latent size of a clip.
    ///
    /// # Errors
    /// Fails for a size that the model does not support, with the nearest one that it does.
    fn latent_size(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<LatentSize>;

    /// Converts a sample of a clip's posterior (B, C, F, h, w) for the mix with noise in training: scaled, with frames
    /// prepended to fill a patch.
    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor>;

    /// Returns the image condition for encoded images, (B, ...) of each tensor. Posteriors among them are sampled with
    /// noise from `rng`; without one, their mean is taken.
    fn condition_on(
        &self,
        encoded: &[Tensor],
        size: &LatentSize,
        rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition>;

    /// Converts drawn noise (1, ..., h, w) to the latents that sampling from an image starts with.
    fn start_from_image(&self, noise: Tensor, _image: &ImageCondition) -> anyhow::Result<Tensor> {
        Ok(noise)
    }

    /// Loads the text encoder and its tokenizer.
    fn text_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn TextEncoder>>;

    /// Loads the encoder half of the VAE, and an image encoder if the model has one.
    fn video_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn VideoEncoder>>;

    /// Loads the decoder half of the VAE.
    fn video_decoder(&self, load: &Load) -> anyhow::Result<Box<dyn VideoDecoder>>;

    /// Returns the memory that a half of the VAE takes for clips of these frames, rows and columns, loaded as `load`
    /// says. Reads headers only.
    fn vae_cost(&self, half: Parts, load: &Load, clip: [usize; 3]) -> anyhow::Result<VaeCost>;

    /// Loads the transformer.
    fn denoiser(&self, load: &Load) -> anyhow::Result<Box<dyn Denoiser>>;
}

impl dyn Family + '_ {
    /// Returns the checkpoint's own scheduler.
    ///
    /// # Errors
    /// Fails for an unreadable config, and for a scheduler that does not fit the family.
    pub fn scheduler(&self) -> anyhow::Result<Scheduler> {
        let folder = self.spec().part("scheduler")?;
        let scheduler = Scheduler::load(&folder)?;
        let FamilySpec { title, schedulers, .. } = self.spec().family;
        ensure!(
            (self.spec().family.takes_scheduler)(&scheduler),
            "{}: scheduler_config.json: _class_name: {title} needs {schedulers}",
            folder.display()
        );
        Ok(scheduler)
    }

    /// Embeds prompts, each with its picture, (B, L, D): loads, uses and frees the text encoder.
    pub fn embed(&self, load: &Load, prompts: &[(&str, Option<&Tensor>)]) -> anyhow::Result<TextEmbeds> {
        let encoder = self.text_encoder(load)?;
        for (prompt, _) in prompts {
            let lost = encoder.truncated_tokens(prompt)?;
            if lost > 0 {
                let length = self.spec().text().tokens;
                log::warn!("the prompt is truncated to {length} tokens; {lost} at its end are lost: {prompt:?}");
            }
        }
        let texts = prompts.iter().map(|(prompt, picture)| encoder.embed(prompt, *picture));
        Ok(TextEmbeds::cat(&texts.collect::<anyhow::Result<Vec<_>>>()?)?)
    }

    /// Encodes an image (1, 3, H, W) of -1..1 to start from: loads, uses and frees the encoders.
    pub fn image_condition(
        &self,
        load: &Load,
        image: &Tensor,
        size: &LatentSize,
        rng: &mut Rng,
    ) -> anyhow::Result<ImageCondition> {
        self.condition_on_image(&*self.video_encoder(load)?, image, size, rng)
    }

    /// Encodes an image (1, 3, H, W) of -1..1 to start from.
    pub fn condition_on_image(
        &self,
        encoder: &dyn VideoEncoder,
        image: &Tensor,
        size: &LatentSize,
        rng: &mut Rng,
    ) -> anyhow::Result<ImageCondition> {
        let encoded = encoder.encode_image(image, size.num_frames)?;
        self.condition_on(&encoded, size, Some(rng))
    }

    /// Encodes a clip (1, 3, T, H, W) of -1..1 to the network's latents.
    pub fn encode(
        &self,
        encoder: &dyn VideoEncoder,
        clip: &Tensor,
        size: &LatentSize,
        rng: &mut Rng,
    ) -> anyhow::Result<Tensor> {
        let posterior = encoder.encode(clip)?;
        let latents = self.latents(&posterior.draw(Some(rng))?)?;
        Ok(size.layout.swap(&latents)?)
    }
}
