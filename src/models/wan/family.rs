//! A Wan 2.1 checkpoint: prompts, latents and frames, as `WanPipeline` and `WanImageToVideoPipeline` in diffusers handle
//! them.
//!
//! From an image, the VAE encodes a whole clip of the image and then black, of which the likeliest latents are taken, and
//! CLIP sees the image as well. Here that is the picture at the clip's size; the pipeline shows CLIP the picture as it was
//! given. Both see the same where nothing is to be resized.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::dit::{self, Dit};
use super::vae::{self, Half, Vae};
use crate::diffusion::posterior::Posterior;
use crate::diffusion::schedulers::Scheduler;
use crate::models::denoiser::Denoiser;
use crate::models::family::{
    Beside, Canvas, ClipEncoder, Conditioner, Emit, ImageCondition, Kept, Layout, TakesImage, TextShape, all_hold,
    whole_frames, whole_patches,
};
use crate::models::prompts::{Padding, Prompts};
use crate::models::transformer::Network as _;
use crate::models::{Family, Remembered, part};
use crate::nn::weights::{Planter, Reading};
use crate::nn::{WeightFolder, Weights};
use crate::rng::Rng;
use crate::vision::{ClipVision, Preprocessor, clip};

/// Tokens of a prompt, padding included: what the pipelines take unless told otherwise.
pub(super) const TEXT_TOKENS: usize = 512;

/// Of the clips that the checkpoints were trained on.
const FRAME_RATE: f64 = 16.0;

/// A checkpoint whose configs are read and whose weights are not.
#[derive(Debug)]
pub struct Wan {
    directory: WeightFolder,
    transformer: dit::Config,
    vae: vae::Config,
    /// Of checkpoints that start from an image.
    image_encoder: Option<clip::Config>,
    reading: Reading,
}

/// What `model_index.json` says in Wan 2.2 alone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Index {
    /// Class and library, both null where there is none.
    transformer_2: Value,
    boundary_ratio: Option<f64>,
    expand_timesteps: bool,
}

impl Wan {
    /// Reads the configs in `directory`; those of parts that only encode may be remembered instead.
    ///
    /// # Errors
    /// Configs that are missing or broken, a checkpoint of Wan 2.2, a transformer that does not go with the VAE.
    pub fn open(directory: &WeightFolder, reading: &Reading, remembered: &Remembered) -> anyhow::Result<Self> {
        Index::read(&directory.join("model_index.json"))?;
        let transformer = dit::Config::load(&part(directory, "transformer")?)?;
        let gone = |part: &str| {
            let text = remembered.get(part)?;
            (!directory.join(part).join("config.json").exists()).then_some(text)
        };
        let vae = match gone("vae") {
            Some(text) => vae::Config::parse(text).context("the VAE's config.json, as it is remembered")?,
            None => vae::Config::read(&part(directory, "vae")?)?,
        };
        let image_encoder = match (transformer.image_dim, gone("image_encoder")) {
            (None, _) => None,
            (Some(_), Some(text)) => {
                Some(clip::Config::parse(text).context("the image encoder's config.json, as it is remembered")?)
            }
            (Some(_), None) => {
                let path = part(directory, "image_encoder")?.join("config.json");
                Some(clip::Config::load(&path)?)
            }
        };
        let this = Self {
            directory: directory.clone(),
            transformer,
            vae,
            image_encoder,
            reading: reading.clone(),
        };
        this.check().with_context(|| directory.display().to_string())?;
        Ok(this)
    }

    /// Whether the parts go together.
    fn check(&self) -> anyhow::Result<()> {
        let (config, latent) = (&self.transformer, self.vae.latent_channels());
        ensure!(
            config.predicted_channels() == latent,
            "transformer/config.json: out_channels is {} and the VAE has {latent} latent channels",
            config.predicted_channels()
        );
        ensure!(
            config.pos_embed_seq_len.is_none(),
            "transformer/config.json: pos_embed_seq_len: models between a first and a last image are not supported"
        );
        let (text, image) = (latent, 2 * latent + self.vae.temporal_compression());
        let wanted = match &self.image_encoder {
            None => text,
            Some(_) => image,
        };
        ensure!(
            config.in_channels == wanted,
            "transformer/config.json: in_channels is {}; text to video of Wan 2.1 has {text} and no image_dim, image to \
             video {image} and an image_dim",
            config.in_channels
        );
        if let (Some(width), Some(encoder)) = (config.image_dim, &self.image_encoder) {
            ensure!(
                width == encoder.hidden_size,
                "transformer/config.json: image_dim is {width} and the image encoder's hidden_size {}",
                encoder.hidden_size
            );
        }
        Ok(())
    }

    fn vae(&self, half: Half) -> anyhow::Result<Vae> {
        Vae::load_half(&part(&self.directory, "vae")?, half, &self.reading)
    }

    fn vision(&self, config: &clip::Config) -> anyhow::Result<Vision> {
        let folder = part(&self.directory, "image_encoder")?;
        let weights = Weights::read(&folder, &self.reading)?;
        weights.ensure_memory(&[])?;
        Ok(Vision {
            preprocessor: Preprocessor::load(&part(&self.directory, "image_processor")?)?,
            encoder: ClipVision::new(config, weights).with_context(|| folder.display().to_string())?,
        })
    }
}

impl Index {
    /// Refuses what came with Wan 2.2.
    fn read(path: &Path) -> anyhow::Result<()> {
        let read = || {
            let index: Self = serde_json::from_str(&std::fs::read_to_string(path)?)?;
            let second = index
                .transformer_2
                .as_array()
                .is_some_and(|class| class.iter().any(|name| !name.is_null()));
            for (key, found) in [
                ("transformer_2", second),
                ("boundary_ratio", index.boundary_ratio.is_some()),
                ("expand_timesteps", index.expand_timesteps),
            ] {
                ensure!(
                    !found,
                    "{key}: this is a checkpoint of Wan 2.2, which is not supported; take one of Wan 2.1"
                );
            }
            Ok(())
        };
        read().with_context(|| path.display().to_string())
    }
}

impl Family for Wan {
    fn directory(&self) -> &WeightFolder {
        &self.directory
    }

    fn pipeline(&self, from_image: bool) -> &'static str {
        match from_image {
            true => "WanImageToVideoPipeline",
            false => "WanPipeline",
        }
    }

    fn conditioner_parts(&self) -> &'static [&'static str] {
        Prompts::PARTS
    }

    fn encoder_parts(&self) -> &'static [&'static str] {
        match self.image_encoder {
            Some(_) => &["vae", "image_processor", "image_encoder"],
            None => &["vae"],
        }
    }

    fn conditioner(&self) -> anyhow::Result<Box<dyn Conditioner>> {
        Prompts::load(&self.directory, TEXT_TOKENS, Padding::Zeros, &self.reading)
    }

    /// A clip is encoded a few frames at a time and alone, so that there is nothing to tile or to slice.
    fn clip_encoder(&self, _tiling: bool, _slicing: bool) -> anyhow::Result<Box<dyn ClipEncoder>> {
        let vision = self.image_encoder.as_ref().map(|config| self.vision(config));
        Ok(Box::new(Clips {
            vae: self.vae(Half::Encoder)?,
            vision: vision.transpose()?,
        }))
    }

    fn text_shape(&self) -> TextShape {
        TextShape {
            tokens: TEXT_TOKENS,
            width: self.transformer.text_dim,
            masked: false,
        }
    }

    fn scheduler(&self) -> anyhow::Result<Scheduler> {
        let folder = part(&self.directory, "scheduler")?;
        let scheduler = Scheduler::load(&folder)?;
        ensure!(
            matches!(scheduler, Scheduler::FlowMatchEuler(_) | Scheduler::UniPc(_)),
            "{}: scheduler_config.json: _class_name: Wan needs a scheduler of flow matching, \
             UniPCMultistepScheduler or FlowMatchEulerDiscreteScheduler",
            folder.display()
        );
        Ok(scheduler)
    }

    fn denoiser(&self, planter: Option<Arc<dyn Planter>>) -> anyhow::Result<Box<dyn Denoiser>> {
        let folder = part(&self.directory, "transformer")?;
        Ok(Box::new(Dit::read(&folder, &self.reading, planter)?))
    }

    fn canvas(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<Canvas> {
        let (time, space) = (self.vae.temporal_compression(), self.vae.spatial_compression());
        let [_, rows, columns] = self.transformer.patch_size.map(|patch| patch * space);
        // The pipelines make a multiple and one of it; a bucket of clips must say it.
        all_hold([
            whole_patches(height, width, [rows, columns]),
            whole_frames(num_frames, time),
        ])?;
        let frames = (num_frames - 1) / time + 1;
        dit::Network::places(&self.transformer).check_size([frames, height / space, width / space])?;
        Ok(Canvas {
            num_frames,
            shape: [1, self.vae.latent_channels(), frames, height / space, width / space],
            layout: Layout::ChannelsFirst,
            padding: 0,
            seq_len: None,
            dtype: DType::F32,
        })
    }

    fn frame_rate(&self) -> f64 {
        FRAME_RATE
    }

    fn takes_image(&self) -> TakesImage {
        match self.image_encoder {
            Some(_) => TakesImage::Always,
            None => TakesImage::Never,
        }
    }

    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor> {
        Ok(self.vae.normalize(&sample.to_dtype(DType::F32)?)?) // (B, C, F, h, w)
    }

    fn image_kept(&self, canvas: &Canvas) -> Kept {
        let Some(encoder) = &self.image_encoder else {
            return Vec::new();
        };
        vec![
            ("image_latents", canvas.encoded().to_vec()),
            ("image_tokens", vec![encoder.tokens(), encoder.hidden_size]),
        ]
    }

    fn condition_on(
        &self,
        encoded: &[Tensor],
        _canvas: &Canvas,
        _rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition> {
        let [latents, tokens] = encoded else {
            bail!("{} tensors for an image's latents and tokens", encoded.len());
        };
        let latents = self.latents(latents)?; // (B, C, F, h, w)
        let (batch, _, frames, height, width) = latents.dims5()?;
        // A channel for each frame of the clip that a latent frame stands for: whether it is given.
        let known = |frames, given: f32| {
            let shape = (batch, self.vae.temporal_compression(), frames, height, width);
            Tensor::full(given, shape, latents.device())
        };
        let mask = Tensor::cat(&[known(1, 1.0)?, known(frames - 1, 0.0)?], 2)?;
        Ok(ImageCondition::Beside(Beside {
            latents: Tensor::cat(&[&mask, &latents], 1)?,
            tokens: Some(tokens.clone()),
            ofs: None,
        }))
    }

    fn check_decoder(&self) -> anyhow::Result<()> {
        self.vae(Half::Decoder).map(drop)
    }

    fn decode(&self, latents: &Tensor, _canvas: &Canvas, _rng: &mut Rng, emit: Emit) -> anyhow::Result<()> {
        let vae = self.vae(Half::Decoder)?;
        vae.decode_batches(&self.vae.denormalize(&latents.to_dtype(self.reading.dtype)?)?, emit)
    }
}

/// The VAE's encoder, and CLIP where a clip starts from an image.
struct Clips {
    vae: Vae,
    vision: Option<Vision>,
}

/// CLIP behind its preprocessing.
struct Vision {
    preprocessor: Preprocessor,
    encoder: ClipVision,
}

impl ClipEncoder for Clips {
    fn encode(&self, clip: &Tensor) -> anyhow::Result<Posterior> {
        Ok(self.vae.encode(clip)?)
    }

    fn encode_image(&self, image: &Tensor, num_frames: usize) -> anyhow::Result<Vec<Tensor>> {
        let vision = self.vision.as_ref();
        let vision = vision.context("this checkpoint makes clips from text alone")?;
        let (batch, _, height, width) = image.dims4()?;
        let rest = Tensor::zeros((batch, 3, num_frames - 1, height, width), image.dtype(), image.device())?;
        let clip = Tensor::cat(&[image.unsqueeze(2)?, rest], 2)?; // (B, 3, T, H, W)
        let pixels = (0..batch).map(|i| vision.preprocessor.of_tensor(&image.narrow(0, i, 1)?));
        let pixels = Tensor::cat(&pixels.collect::<anyhow::Result<Vec<_>>>()?, 0)?;
        let tokens = vision
            .encoder
            .forward(&pixels)
            .context("image_encoder/config.json and image_processor/preprocessor_config.json do not belong together")?;
        Ok(vec![
            self.vae.encode(&clip)?.mode(), // (B, C, F, h, w)
            tokens,                         // (B, tokens, width)
        ])
    }
}
