//! Memory of videos: of denoising, and of decoding.

use super::choice::Stages;
use super::denoising::{Clips, Pass, Transformer};
use super::training::{Memory, Resident, Training};
use super::{Stage, Subject};
use crate::config::RunConfig;
use crate::data::Bucket;
use crate::models::family::Parts;
use crate::models::{Family, Offload};

/// Memory of a video.
pub(super) struct Video {
    /// Weights of the transformer.
    weights: u64,
    /// Peak over them while it is denoised.
    denoising: u64,
    /// Peak of decoding, without the transformer.
    decoding: u64,
}

impl Subject<'_> {
    /// Returns the memory of the prompts' videos.
    ///
    /// # Errors
    /// Those of the files of the transformer and the autoencoder.
    pub(super) fn videos(&self, config: &RunConfig, family: &dyn Family) -> anyhow::Result<Vec<Video>> {
        let prompts = config.validation.prompts.iter();
        let videos = prompts.map(|prompt| {
            let bucket = Bucket {
                frames: prompt.num_frames,
                height: prompt.height,
                width: prompt.width,
            };
            let transformer = self.transformer(config)?;
            self.video(config, family, &transformer, bucket, prompt.guidance_scale > 1.0)
        });
        videos.collect()
    }

    fn video(
        &self,
        config: &RunConfig,
        family: &dyn Family,
        transformer: &Transformer,
        bucket: Bucket,
        guided: bool,
    ) -> anyhow::Result<Video> {
        let forward = transformer.memory(Clips { bucket, count: 1 }, Pass::Forward)?;
        let inputs = if guided { 2 } else { 1 };
        Ok(Video {
            weights: Resident::new(config, &forward.held, transformer.ranks).all,
            denoising: forward.level.peak as u64 + inputs * forward.input_bytes,
            decoding: self.coding(config, family, bucket, Parts::Decoder)?.peak_bytes,
        })
    }

    /// Returns the memory of videos that are made while training: of denoising, and of decoding beside the transformer; None
    /// without any.
    pub(super) fn validation(&self, config: &RunConfig, training: &Training, videos: &[Video]) -> Option<Memory> {
        let stays = training.weight_bytes + training.adapter_bytes + training.optimizer_bytes;
        let gone = match config.model.offload {
            Offload::None | Offload::Auto => 0,
            Offload::Model | Offload::Group => training.block_bytes,
        };
        let peak = |video: &Video| (stays + video.denoising).max(stays.saturating_sub(gone) + video.decoding);
        let peak_bytes = videos.iter().map(peak).max()?;
        Some(Memory {
            peak_bytes,
            host_bytes: self.on_host(peak_bytes),
        })
    }

    /// Returns the stages of making a video by itself: its prompt is embedded; it is denoised, then decoded without the
    /// transformer.
    ///
    /// # Errors
    /// Those of the model's files.
    pub fn sampling(
        &self,
        config: &RunConfig,
        family: &dyn Family,
        bucket: Bucket,
        guided: bool,
    ) -> anyhow::Result<Stages> {
        let transformer = Transformer {
            lora: None,
            ..self.transformer(config)?
        };
        let video = self.video(config, family, &transformer, bucket, guided)?;
        let memory = |peak_bytes| Memory {
            peak_bytes,
            host_bytes: self.on_host(peak_bytes),
        };
        Ok(vec![
            (Stage::Text, self.text(config, family)?),
            (Stage::Denoising, memory(video.weights + video.denoising)),
            (Stage::Decoding, memory(video.decoding)),
        ])
    }
}
