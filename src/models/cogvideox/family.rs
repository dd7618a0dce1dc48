//! A CogVideoX checkpoint: prompts, latents and frames, as `CogVideoXPipeline` and its image-to-video and video-to-video
//! siblings in diffusers handle them.

use std::sync::Arc;

use anyhow::{Context, bail};
use candle_core::Tensor;

use super::dit::{self, Dit};
use super::vae::{self, Half, Vae};
use crate::diffusion::posterior::Posterior;
use crate::diffusion::schedulers::Scheduler;
use crate::models::denoiser::Denoiser;
use crate::models::family::{
    Beside, Canvas, ClipEncoder, Conditioner, Emit, ImageCondition, Kept, Layout, TakesImage, TextShape, all_hold,
    posterior_of, whole_frames, whole_patches,
};
use crate::models::prompts::{Padding, Prompts};
use crate::models::{Family, Remembered, part};
use crate::nn::WeightFolder;
use crate::nn::weights::{Planter, Reading};
use crate::rng::Rng;

/// What image-to-video pipelines give as `ofs`.
const OFS: f64 = 2.0;

/// Of the clips that the checkpoints were trained on.
const FRAME_RATE: f64 = 8.0;

/// A checkpoint whose configs are read and whose weights are not.
#[derive(Debug)]
pub struct CogVideoX {
    directory: WeightFolder,
    transformer: dit::Config,
    vae: vae::Config,
    reading: Reading,
}

impl CogVideoX {
    /// Reads the configs in `directory`; the VAE's may be remembered instead.
    pub fn open(directory: &WeightFolder, reading: &Reading, remembered: &Remembered) -> anyhow::Result<Self> {
        let vae = match remembered.get("vae") {
            Some(text) if !directory.join("vae/config.json").exists() => {
                vae::Config::parse(text).context("the VAE's config.json, as it is remembered")?
            }
            _ => vae::Config::read(&part(directory, "vae")?)?,
        };
        Ok(Self {
            transformer: dit::Config::load(&part(directory, "transformer")?)?,
            vae,
            directory: directory.clone(),
            reading: reading.clone(),
        })
    }

    /// Latent channels that are denoised; with an image, as many more condition them.
    fn channels(&self) -> usize {
        self.transformer.out_channels
    }

    fn vae(&self, half: Half) -> anyhow::Result<Vae> {
        Vae::load_half(&part(&self.directory, "vae")?, half, &self.reading)
    }
}

impl Family for CogVideoX {
    fn directory(&self) -> &WeightFolder {
        &self.directory
    }

    fn pipeline(&self, from_image: bool) -> &'static str {
        match from_image {
            true => "CogVideoXImageToVideoPipeline",
            false => "CogVideoXPipeline",
        }
    }

    fn conditioner_parts(&self) -> &'static [&'static str] {
        Prompts::PARTS
    }

    fn encoder_parts(&self) -> &'static [&'static str] {
        &["vae"]
    }

    fn conditioner(&self) -> anyhow::Result<Box<dyn Conditioner>> {
        Prompts::load(
            &self.directory,
            self.transformer.max_text_seq_length,
            Padding::Counts,
            &self.reading,
        )
    }

    fn clip_encoder(&self, tiling: bool, slicing: bool) -> anyhow::Result<Box<dyn ClipEncoder>> {
        let mut vae = self.vae(Half::Encoder)?;
        let compression = self.vae.spatial_compression();
        vae.tiling = Some(vae.default_tiling()).filter(|tiles| tiling && tiles.lines_up(compression));
        vae.slicing = slicing;
        Ok(Box::new(Clips { vae }))
    }

    fn text_shape(&self) -> TextShape {
        TextShape {
            tokens: self.transformer.max_text_seq_length,
            width: self.transformer.text_embed_dim,
            masked: false,
        }
    }

    fn scheduler(&self) -> anyhow::Result<Scheduler> {
        let folder = part(&self.directory, "scheduler")?;
        let scheduler = Scheduler::load(&folder)?;
        scheduler.process().with_context(|| folder.display().to_string())?;
        Ok(scheduler)
    }

    fn denoiser(&self, planter: Option<Arc<dyn Planter>>) -> anyhow::Result<Box<dyn Denoiser>> {
        let folder = part(&self.directory, "transformer")?;
        Ok(Box::new(Dit::read(&folder, &self.reading, planter)?))
    }

    fn canvas(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<Canvas> {
        let (time, space) = (
            self.vae.temporal_compression_ratio as usize,
            self.vae.spatial_compression(),
        );
        let step = space * self.transformer.patch_size;
        all_hold([whole_patches(height, width, [step; 2]), whole_frames(num_frames, 1)])?;
        dit::check_positions(&self.transformer, [height / step, width / step])?;
        let learned = (self.transformer.sample_height, self.transformer.sample_width);
        if self.transformer.use_learned_positional_embeddings && (height / space, width / space) != learned {
            bail!(
                "{height}x{width} (height x width): this model has learned positions for {}x{} only",
                learned.0 * space,
                learned.1 * space
            );
        }
        let frames = (num_frames - 1) / time + 1;
        let padding = self.transformer.additional_frames(frames);
        let shape = [1, frames + padding, self.channels(), height / space, width / space];
        Ok(Canvas {
            num_frames,
            shape,
            layout: Layout::FramesFirst,
            padding,
            seq_len: None,
            dtype: self.reading.dtype,
        })
    }

    fn frame_rate(&self) -> f64 {
        FRAME_RATE
    }

    fn takes_image(&self) -> TakesImage {
        match self.transformer.in_channels == 2 * self.channels() {
            true => TakesImage::Always,
            false => TakesImage::Never,
        }
    }

    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor> {
        let latents = self.vae.scale(sample)?; // (B, C, F, h, w)
        let missing = self.transformer.additional_frames(latents.dim(2)?);
        if missing == 0 {
            return Ok(latents);
        }
        // As diffusers' train_cogvideox_lora.py fills the first patch.
        let first = latents.narrow(2, 0, 1)?.repeat((1, 1, missing, 1, 1))?;
        Ok(Tensor::cat(&[first, latents], 2)?)
    }

    fn image_kept(&self, canvas: &Canvas) -> Kept {
        if self.takes_image() == TakesImage::Never {
            return Vec::new();
        }
        let [channels, _, height, width] = canvas.encoded();
        let first = vec![channels, 1, height, width];
        vec![("image_mean", first.clone()), ("image_logvar", first)]
    }

    fn condition_on(
        &self,
        encoded: &[Tensor],
        canvas: &Canvas,
        rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition> {
        let sample = posterior_of(encoded)?.draw(rng)?; // (B, C, 1, h, w)
        let latents = canvas.layout.swap(&self.vae.scale_image(&sample)?)?; // (B, 1, C, h, w)
        let (batch, _, channels, height, width) = latents.dims5()?;
        let rest = (batch, canvas.frames() - 1, channels, height, width);
        let rest = Tensor::zeros(rest, latents.dtype(), latents.device())?;
        let ofs = self
            .transformer
            .ofs_embed_dim
            .map(|_| Tensor::new(&[OFS as f32], &self.reading.device))
            .transpose()?;
        Ok(ImageCondition::Beside(Beside {
            latents: Tensor::cat(&[latents, rest], 1)?, // (B, F, C, h, w)
            tokens: None,
            ofs,
        }))
    }

    fn check_decoder(&self) -> anyhow::Result<()> {
        self.vae(Half::Decoder).map(drop)
    }

    fn decode(&self, latents: &Tensor, canvas: &Canvas, _rng: &mut Rng, emit: Emit) -> anyhow::Result<()> {
        let vae = self.vae(Half::Decoder)?;
        let frames = latents.dim(1)? - canvas.padding;
        let latents = canvas.layout.swap(&latents.narrow(1, canvas.padding, frames)?)?; // (1, C, F, h, w)
        vae.decode_batches(
            &self.vae.unscale(&latents.to_dtype(self.reading.dtype)?)?.contiguous()?,
            emit,
        )
    }
}

/// The VAE's encoder.
struct Clips {
    vae: Vae,
}

impl ClipEncoder for Clips {
    fn encode(&self, clip: &Tensor) -> anyhow::Result<Posterior> {
        Ok(self.vae.encode(clip)?)
    }
}
