//! An LTX-Video checkpoint: prompts, latents and frames, as in `LTXPipeline` and `LTXImageToVideoPipeline` of
//! diffusers.
//!
//! A checkpoint of `LTXConditionPipeline` (0.9.5) has the same parts and is opened as these two; its own spacing of
//! steps and its conditions on frames in the middle of a clip are not supported.
//!
//! The normalisation of latents is among the VAE's weights. So clips are encoded to posteriors that are normalised
//! already, and training does not need the VAE.

use std::sync::Arc;

use anyhow::{Context, ensure};
use candle_core::{DType, Tensor};

use super::dit::{self, Dit, SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION};
use super::vae::{self, Parts, Vae};
use crate::diffusion::posterior::Posterior;
use crate::diffusion::schedulers::Scheduler;
use crate::models::denoiser::Denoiser;
use crate::models::family::{
    Emit, ImageCondition, ImageMode, LatentSize, Layout, TextEncoder, TextShape, VideoEncoder, check_all,
    check_num_frames, check_patchable, posterior_from,
};
use crate::models::t5_conditioner::{Padding, T5Conditioner};
use crate::models::{CachedConfigs, Family, part};
use crate::nn::WeightFolder;
use crate::nn::adapter::Adapt;
use crate::nn::config;
use crate::nn::weights::Reading;
use crate::rng::Rng;

/// Tokens of a prompt, including padding: the pipelines' default.
pub const TEXT_TOKENS: usize = 128;

/// Default frames per second of clips: the pipelines' own.
pub const FRAME_RATE: f64 = 25.0;

/// Noise level of decoders that remove the last noise, both added and passed to them. The pipelines' documentation
/// advises it; without `decode_noise_scale` they use the same value for both.
const DECODE_TIMESTEP: f64 = 0.05;

/// A checkpoint with its configs, but without weights.
#[derive(Debug)]
pub struct LtxVideo {
    directory: WeightFolder,
    transformer: dit::Config,
    vae: vae::Config,
    reading: Reading,
}

impl LtxVideo {
    /// Reads the configs in `directory`; the VAE's may be remembered instead.
    ///
    /// # Errors
    /// Fails for missing or broken configs, and for a transformer that does not match the VAE.
    pub fn open(directory: &WeightFolder, reading: &Reading, remembered: &CachedConfigs) -> anyhow::Result<Self> {
        let transformer = dit::Config::load(&part(directory, "transformer")?)?;
        let vae = match remembered.get("vae") {
            Some(text) if !directory.join("vae/config.json").exists() => {
                config::parse(text).context("the VAE's config.json in the cache")?
            }
            _ => vae::Config::read(&part(directory, "vae")?)?,
        };
        check(&transformer, &vae).with_context(|| directory.display().to_string())?;
        Ok(Self {
            directory: directory.clone(),
            transformer,
            vae,
            reading: reading.clone(),
        })
    }

    fn vae(&self, half: Parts) -> anyhow::Result<Vae> {
        Vae::load_half(&part(&self.directory, "vae")?, half, &self.reading)
    }
}

/// Checks that the parts match.
fn check(transformer: &dit::Config, vae: &vae::Config) -> anyhow::Result<()> {
    let (channels, predicted) = (transformer.in_channels, transformer.predicted_channels());
    ensure!(
        channels == vae.latent_channels && predicted == channels,
        "transformer/config.json: in_channels is {channels} and out_channels {predicted}, and the VAE has {} latent channels",
        vae.latent_channels
    );
    let (time, space) = (vae.temporal_compression(), vae.spatial_compression());
    ensure!(
        (time, space) == (TEMPORAL_COMPRESSION, SPATIAL_COMPRESSION),
        "vae/config.json: it makes one of {time} frames and {space} pixels, and the transformer's positions count \
         {TEMPORAL_COMPRESSION} and {SPATIAL_COMPRESSION}"
    );
    Ok(())
}

impl Family for LtxVideo {
    fn directory(&self) -> &WeightFolder {
        &self.directory
    }

    fn pipeline(&self, from_image: bool) -> &'static str {
        match from_image {
            true => "LTXImageToVideoPipeline",
            false => "LTXPipeline",
        }
    }

    fn text_encoder_parts(&self) -> &'static [&'static str] {
        T5Conditioner::PARTS
    }

    fn video_encoder_parts(&self) -> &'static [&'static str] {
        &["vae"]
    }

    fn text_encoder(&self) -> anyhow::Result<Box<dyn TextEncoder>> {
        T5Conditioner::load(&self.directory, TEXT_TOKENS, Padding::Masked, &self.reading)
    }

    /// Clips are encoded one by one, and whole: there is nothing to slice or tile.
    fn video_encoder(&self, _tiling: bool, _slicing: bool) -> anyhow::Result<Box<dyn VideoEncoder>> {
        let vae = self.vae(Parts::Encoder)?;
        Ok(Box::new(Clips { vae }))
    }

    fn text_shape(&self) -> TextShape {
        TextShape {
            tokens: TEXT_TOKENS,
            width: self.transformer.caption_channels,
            masked: true,
        }
    }

    fn scheduler(&self) -> anyhow::Result<Scheduler> {
        let folder = part(&self.directory, "scheduler")?;
        let scheduler = Scheduler::load(&folder)?;
        ensure!(
            matches!(scheduler, Scheduler::FlowMatchEuler(_)),
            "{}: scheduler_config.json: _class_name: LTX-Video needs FlowMatchEulerDiscreteScheduler",
            folder.display()
        );
        Ok(scheduler)
    }

    fn denoiser(&self, adapt: Option<Arc<dyn Adapt>>) -> anyhow::Result<Box<dyn Denoiser>> {
        let folder = part(&self.directory, "transformer")?;
        Ok(Box::new(Dit::read(&folder, &self.reading, adapt)?))
    }

    fn latent_size(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<LatentSize> {
        let (time, space) = (TEMPORAL_COMPRESSION, SPATIAL_COMPRESSION);
        check_all([
            check_patchable(height, width, [space; 2]),
            check_num_frames(num_frames, time),
        ])?;
        let (frames, height, width) = ((num_frames - 1) / time + 1, height / space, width / space);
        Ok(LatentSize {
            num_frames,
            shape: [1, self.transformer.in_channels, frames, height, width],
            layout: Layout::ChannelsFirst,
            padding: 0,
            seq_len: Some(frames * height * width),
            dtype: DType::F32,
        })
    }

    fn frame_rate(&self) -> f64 {
        FRAME_RATE
    }

    fn image_mode(&self) -> ImageMode {
        ImageMode::Either
    }

    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor> {
        Ok(sample.clone()) // the posterior is normalised
    }

    fn condition_on(
        &self,
        encoded: &[Tensor],
        _canvas: &LatentSize,
        rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition> {
        Ok(ImageCondition::First(posterior_from(encoded)?.draw(rng)?)) // (B, C, 1, h, w)
    }

    fn check_decoder(&self) -> anyhow::Result<()> {
        self.vae(Parts::Decoder).map(drop)
    }

    fn decode(&self, latents: &Tensor, _canvas: &LatentSize, rng: &mut Rng, emit: Emit) -> anyhow::Result<()> {
        let vae = self.vae(Parts::Decoder)?;
        let latents = vae.statistics.denormalize(latents)?.to_dtype(self.reading.dtype)?; // (1, C, F, h, w)
        if !self.vae.timestep_conditioning {
            return emit(vae.decode(&latents, None, rng)?);
        }
        let noise = Tensor::from_vec(rng.randn(latents.elem_count()), latents.shape(), latents.device())?;
        let noise = (noise.to_dtype(self.reading.dtype)? * DECODE_TIMESTEP)?;
        let latents = ((latents * (1.0 - DECODE_TIMESTEP))? + noise)?;
        let timestep = Tensor::new(&[DECODE_TIMESTEP as f32], latents.device())?.to_dtype(self.reading.dtype)?;
        emit(vae.decode(&latents, Some(&timestep), rng)?)
    }
}

/// Encoder of clips, by the VAE.
struct Clips {
    vae: Vae,
}

impl VideoEncoder for Clips {
    fn encode(&self, clip: &Tensor) -> anyhow::Result<Posterior> {
        Ok(self.vae.statistics.normalize_posterior(&self.vae.encode(clip)?)?)
    }
}
