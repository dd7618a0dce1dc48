//! A CogVideoX checkpoint: prompts, latents and frames, as `CogVideoXPipeline` and its image-to-video and video-to-video
//! siblings in diffusers handle them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device, Tensor};

use super::dit::{self, Dit};
use super::vae::{self, Half, Vae};
use crate::diffusion::objective::Objective;
use crate::diffusion::posterior::Posterior;
use crate::diffusion::schedulers::Scheduler;
use crate::models::denoiser::Denoiser;
use crate::models::family::{Canvas, ClipEncoder, Conditioner, Emit, ImageCondition};
use crate::models::{Family, Remembered};
use crate::nn::Weights;
use crate::nn::weights::Planter;
use crate::rng::Rng;
use crate::text::{TextTokenizer, t5};

/// What image-to-video pipelines give as `ofs`.
const OFS: f64 = 2.0;

/// A checkpoint whose configs are read and whose weights are not.
#[derive(Debug)]
pub struct CogVideoX {
    directory: PathBuf,
    transformer: dit::Config,
    vae: vae::Config,
    dtype: DType,
    device: Device,
}

impl CogVideoX {
    /// Reads the configs in `directory`; the VAE's may be remembered instead.
    pub fn open(directory: &Path, dtype: DType, device: &Device, remembered: &Remembered) -> anyhow::Result<Self> {
        let vae = match remembered.get("vae") {
            Some(text) if !directory.join("vae/config.json").exists() => {
                vae::Config::parse(text).context("the VAE's config.json, as it is remembered")?
            }
            _ => vae::Config::read(&part(directory, "vae")?)?,
        };
        Ok(Self {
            transformer: dit::Config::load(&part(directory, "transformer")?)?,
            vae,
            directory: directory.into(),
            dtype,
            device: device.clone(),
        })
    }

    /// Latent channels that are denoised; with an image, as many more condition them.
    fn channels(&self) -> usize {
        self.transformer.out_channels
    }

    fn vae(&self, half: Half) -> anyhow::Result<Vae> {
        Vae::load_half(&part(&self.directory, "vae")?, half, self.dtype, &self.device)
    }

    /// Draws a sample of the posterior of a clip (1, 3, T, H, W): not scaled, (1, C, F, h, w).
    fn sample_posterior(&self, clip: &Tensor, rng: &mut Rng) -> anyhow::Result<Tensor> {
        let posterior = self.clip_encoder(false, false)?.encode(clip)?;
        let dims = posterior.mean.dims();
        let noise = Tensor::from_vec(rng.randn(dims.iter().product()), dims, &self.device)?;
        Ok(posterior.sample(&noise.to_dtype(self.dtype)?)?)
    }
}

impl Family for CogVideoX {
    fn directory(&self) -> &Path {
        &self.directory
    }

    fn pipeline(&self) -> &'static str {
        match self.takes_image() {
            true => "CogVideoXImageToVideoPipeline",
            false => "CogVideoXPipeline",
        }
    }

    fn conditioner_parts(&self) -> &'static [&'static str] {
        &["tokenizer", "text_encoder"]
    }

    fn encoder_parts(&self) -> &'static [&'static str] {
        &["vae"]
    }

    fn conditioner(&self) -> anyhow::Result<Box<dyn Conditioner>> {
        let tokenizer = TextTokenizer::open(&part(&self.directory, "tokenizer")?)?;
        let folder = part(&self.directory, "text_encoder")?;
        let config = t5::Config::load(&folder.join("config.json"))?;
        let weights = Weights::open(&folder, self.dtype, &self.device)?;
        let encoder = t5::T5Encoder::new(&config, weights).with_context(|| folder.display().to_string())?;
        Ok(Box::new(Prompts {
            tokenizer,
            encoder,
            length: self.transformer.max_text_seq_length,
            device: self.device.clone(),
        }))
    }

    fn clip_encoder(&self, tiling: bool, slicing: bool) -> anyhow::Result<Box<dyn ClipEncoder>> {
        let mut vae = self.vae(Half::Encoder)?;
        let compression = self.vae.spatial_compression();
        vae.tiling = Some(vae.default_tiling()).filter(|tiles| tiling && tiles.lines_up(compression));
        vae.slicing = slicing;
        Ok(Box::new(Clips { vae }))
    }

    fn text_shape(&self) -> [usize; 2] {
        [self.transformer.max_text_seq_length, self.transformer.text_embed_dim]
    }

    fn scheduler(&self) -> anyhow::Result<Scheduler> {
        let folder = part(&self.directory, "scheduler")?;
        let scheduler = Scheduler::load(&folder)?;
        scheduler.process().with_context(|| folder.display().to_string())?;
        Ok(scheduler)
    }

    fn denoiser(&self, planter: Option<Arc<dyn Planter>>) -> anyhow::Result<Box<dyn Denoiser>> {
        let folder = part(&self.directory, "transformer")?;
        Ok(Box::new(Dit::load(&folder, self.dtype, &self.device, planter)?))
    }

    fn canvas(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<Canvas> {
        let (time, space) = (
            self.vae.temporal_compression_ratio as usize,
            self.vae.spatial_compression(),
        );
        let step = space * self.transformer.patch_size;
        let nearest = |side: usize| (side + step / 2) / step * step;
        ensure!(num_frames > 0, "a clip has at least one frame");
        if height == 0 || width == 0 || !height.is_multiple_of(step) || !width.is_multiple_of(step) {
            let (height_near, width_near) = (nearest(height).max(step), nearest(width).max(step));
            bail!(
                "{height}x{width} (height x width) must be multiples of {step}; the nearest is {height_near}x{width_near}"
            );
        }
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
        Ok(Canvas { shape, padding })
    }

    fn takes_image(&self) -> bool {
        self.transformer.in_channels == 2 * self.channels()
    }

    fn objective(&self) -> anyhow::Result<Objective> {
        Ok(Objective::Ddpm(self.scheduler()?.process()?.clone()))
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

    fn arrange(&self, latents: &Tensor) -> anyhow::Result<Tensor> {
        Ok(latents.permute((0, 2, 1, 3, 4))?.contiguous()?)
    }

    fn condition_on(&self, sample: &Tensor, frames: usize) -> anyhow::Result<ImageCondition> {
        let latents = self.vae.scale_image(sample)?.permute((0, 2, 1, 3, 4))?; // (B, 1, C, h, w)
        let (batch, _, channels, height, width) = latents.dims5()?;
        let rest = (batch, frames.saturating_sub(1), channels, height, width);
        let rest = Tensor::zeros(rest, latents.dtype(), latents.device())?;
        let ofs = self
            .transformer
            .ofs_embed_dim
            .map(|_| Tensor::new(&[OFS as f32], &self.device))
            .transpose()?;
        Ok(ImageCondition {
            latents: Tensor::cat(&[latents, rest], 1)?, // (B, F, C, h, w)
            ofs,
        })
    }

    fn image_condition(&self, image: &Tensor, canvas: &Canvas, rng: &mut Rng) -> anyhow::Result<ImageCondition> {
        let sample = self.sample_posterior(&image.unsqueeze(2)?, rng)?; // (1, C, 1, h, w)
        self.condition_on(&sample, canvas.shape[1])
    }

    fn encode(&self, clip: &Tensor, rng: &mut Rng) -> anyhow::Result<Tensor> {
        self.arrange(&self.latents(&self.sample_posterior(clip, rng)?)?)
    }

    fn decode(&self, latents: &Tensor, canvas: &Canvas, emit: Emit) -> anyhow::Result<()> {
        let vae = self.vae(Half::Decoder)?;
        let frames = latents.dim(1)? - canvas.padding;
        let latents = latents.narrow(1, canvas.padding, frames)?.permute((0, 2, 1, 3, 4))?; // (1, C, F, h, w)
        vae.decode_batches(&self.vae.unscale(&latents.to_dtype(self.dtype)?)?.contiguous()?, emit)
    }
}

/// T5 behind its tokenizer.
struct Prompts {
    tokenizer: TextTokenizer,
    encoder: t5::T5Encoder,
    /// In tokens.
    length: usize,
    device: Device,
}

impl Conditioner for Prompts {
    fn embed(&self, prompt: &str) -> anyhow::Result<Tensor> {
        let length = self.length;
        let encoding = self.tokenizer.encode_padded(prompt, length)?;
        if encoding.truncated > 0 {
            log::warn!(
                "a prompt is cut to {length} tokens; {} are lost: {prompt:?}",
                encoding.truncated
            );
        }
        let ids = Tensor::from_vec(encoding.ids, (1, length), &self.device)?;
        Ok(self.encoder.forward(&ids, None)?) // (1, L, D); CogVideoX attends to padding, too
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

/// A part of the checkpoint, which must be there.
fn part(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let folder = directory.join(name);
    ensure!(
        folder.is_dir(),
        "{}: the checkpoint has no {name}/, which this step needs; download it in full",
        directory.display()
    );
    Ok(folder)
}
