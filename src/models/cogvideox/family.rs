//! A CogVideoX checkpoint: prompts, latents and frames, as in `CogVideoXPipeline` and its image-to-video and
//! video-to-video variants in diffusers.

use std::sync::Arc;

use anyhow::{Context, bail};
use candle_core::Tensor;

use super::dit::{self, Dit};
use super::vae::{self, Parts, Vae};
use crate::diffusion::posterior::Posterior;
use crate::diffusion::schedulers::Scheduler;
use crate::models::denoiser::Denoiser;
use crate::models::family::{
    ConcatCondition, Emit, ImageCondition, ImageMode, LatentSize, Layout, TensorSpecs, TextEncoder, TextShape,
    VideoEncoder, check_all, check_num_frames, check_patchable, posterior_from,
};
use crate::models::t5_conditioner::{Padding, T5Conditioner};
use crate::models::{CachedConfigs, Family, part};
use crate::nn::WeightFolder;
use crate::nn::adapter::Adapt;
use crate::nn::weights::Reading;
use crate::rng::Rng;

/// Value of `ofs` in image-to-video pipelines.
const OFS: f64 = 2.0;

/// Frames per second of the checkpoints' training clips.
const FRAME_RATE: f64 = 8.0;

/// A checkpoint with its configs, but without weights.
#[derive(Debug)]
pub struct CogVideoX {
    directory: WeightFolder,
    transformer: dit::Config,
    vae: vae::Config,
    reading: Reading,
}

impl CogVideoX {
    /// Reads the configs in `directory`; the VAE's may be remembered instead.
    pub fn open(directory: &WeightFolder, reading: &Reading, remembered: &CachedConfigs) -> anyhow::Result<Self> {
        let vae = match remembered.get("vae") {
            Some(text) if !directory.join("vae/config.json").exists() => {
                vae::Config::parse(text).context("the VAE's config.json in the cache")?
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

    /// Latent channels that are denoised; image conditions add as many.
    fn channels(&self) -> usize {
        self.transformer.out_channels
    }

    fn vae(&self, half: Parts) -> anyhow::Result<Vae> {
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

    fn text_encoder_parts(&self) -> &'static [&'static str] {
        T5Conditioner::PARTS
    }

    fn video_encoder_parts(&self) -> &'static [&'static str] {
        &["vae"]
    }

    fn text_encoder(&self) -> anyhow::Result<Box<dyn TextEncoder>> {
        T5Conditioner::load(
            &self.directory,
            self.transformer.max_text_seq_length,
            Padding::Counts,
            &self.reading,
        )
    }

    fn video_encoder(&self, tiling: bool, slicing: bool) -> anyhow::Result<Box<dyn VideoEncoder>> {
        let mut vae = self.vae(Parts::Encoder)?;
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

    fn denoiser(&self, adapt: Option<Arc<dyn Adapt>>) -> anyhow::Result<Box<dyn Denoiser>> {
        let folder = part(&self.directory, "transformer")?;
        Ok(Box::new(Dit::read(&folder, &self.reading, adapt)?))
    }

    fn latent_size(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<LatentSize> {
        let (time, space) = (
            self.vae.temporal_compression_ratio as usize,
            self.vae.spatial_compression(),
        );
        let step = space * self.transformer.patch_size;
        check_all([
            check_patchable(height, width, [step; 2]),
            check_num_frames(num_frames, 1),
        ])?;
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
        Ok(LatentSize {
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

    fn image_mode(&self) -> ImageMode {
        match self.transformer.in_channels == 2 * self.channels() {
            true => ImageMode::Always,
            false => ImageMode::Never,
        }
    }

    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor> {
        let latents = self.vae.scale(sample)?; // (B, C, F, h, w)
        let missing = self.transformer.additional_frames(latents.dim(2)?);
        if missing == 0 {
            return Ok(latents);
        }
        // Fills the first patch as diffusers' train_cogvideox_lora.py does.
        let first = latents.narrow(2, 0, 1)?.repeat((1, 1, missing, 1, 1))?;
        Ok(Tensor::cat(&[first, latents], 2)?)
    }

    fn image_tensor_specs(&self, canvas: &LatentSize) -> TensorSpecs {
        if self.image_mode() == ImageMode::Never {
            return Vec::new();
        }
        let [channels, _, height, width] = canvas.encoded();
        let first = vec![channels, 1, height, width];
        vec![("image_mean", first.clone()), ("image_logvar", first)]
    }

    fn condition_on(
        &self,
        encoded: &[Tensor],
        canvas: &LatentSize,
        rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition> {
        let sample = posterior_from(encoded)?.draw(rng)?; // (B, C, 1, h, w)
        let latents = canvas.layout.swap(&self.vae.scale_image(&sample)?)?; // (B, 1, C, h, w)
        let (batch, _, channels, height, width) = latents.dims5()?;
        let rest = (batch, canvas.frames() - 1, channels, height, width);
        let rest = Tensor::zeros(rest, latents.dtype(), latents.device())?;
        let ofs = self
            .transformer
            .ofs_embed_dim
            .map(|_| Tensor::new(&[OFS as f32], &self.reading.device))
            .transpose()?;
        Ok(ImageCondition::Concat(ConcatCondition {
            latents: Tensor::cat(&[latents, rest], 1)?, // (B, F, C, h, w)
            tokens: None,
            ofs,
        }))
    }

    fn check_decoder(&self) -> anyhow::Result<()> {
        self.vae(Parts::Decoder).map(drop)
    }

    fn decode(&self, latents: &Tensor, canvas: &LatentSize, _rng: &mut Rng, emit: Emit) -> anyhow::Result<()> {
        let vae = self.vae(Parts::Decoder)?;
        let frames = latents.dim(1)? - canvas.padding;
        let latents = canvas.layout.swap(&latents.narrow(1, canvas.padding, frames)?)?; // (1, C, F, h, w)
        vae.decode_batches(
            &self.vae.unscale(&latents.to_dtype(self.reading.dtype)?)?.contiguous()?,
            emit,
        )
    }
}

/// Encoder of clips, by the VAE.
struct Clips {
    vae: Vae,
}

impl VideoEncoder for Clips {
    fn encode(&self, clip: &Tensor) -> anyhow::Result<Posterior> {
        Ok(self.vae.encode(clip)?)
    }
}
