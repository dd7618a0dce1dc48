//! An LTX-Video checkpoint: prompts, latents and frames, as in `LTXPipeline` and `LTXImageToVideoPipeline` of
//! diffusers.
//!
//! A checkpoint of `LTXConditionPipeline` (0.9.5) has the same parts and is opened as these two; its own spacing of
//! steps and its conditions on frames in the middle of a clip are not supported.
//!
//! The normalisation of latents is among the VAE's weights. So clips are encoded to posteriors that are normalised
//! already, and training does not need the VAE.

use anyhow::{Context, ensure};
use candle_core::Tensor;

use super::dit::{self, Dit, SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION};
use super::vae::{self, Parts, Vae};
use crate::diffusion::posterior::Posterior;
use crate::models::autoencoder::Codec as _;
use crate::models::family::{
    CheckpointDir, Denoiser, Emit, Family, FirstFrame, Footprint, ImageCondition, ImageMode, LatentSize, Layout,
    ModelSpec, TextEncoder, VaeCost, VideoDecoder, VideoEncoder, check_all, check_num_frames, check_patchable,
    posterior_from,
};
use crate::models::t5_conditioner::{Padding, T5Conditioner};
use crate::models::transformer::Network as _;
use crate::nn::Load;
use crate::rng::Rng;

/// Noise level of decoders that remove the last noise, both added and passed to them. The pipelines' documentation
/// advises it; without `decode_noise_scale` they use the same value for both.
const DECODE_TIMESTEP: f64 = 0.05;

/// A checkpoint with its configs, but without weights.
#[derive(Debug)]
pub struct LtxVideo {
    spec: ModelSpec,
    transformer: dit::Config,
}

impl LtxVideo {
    /// Reads the configs in `directory`.
    ///
    /// # Errors
    /// Fails for missing or broken configs, and for a transformer that does not match the VAE.
    pub fn open(directory: &CheckpointDir) -> anyhow::Result<Self> {
        let (transformer, vae): (dit::Config, vae::Config) =
            (directory.config("transformer")?, directory.config("vae")?);
        check(&transformer, &vae).with_context(|| directory.folder.display().to_string())?;
        let footprint = Footprint {
            first_frame: FirstFrame::Alone,
            latent_channels: transformer.in_channels,
            text: dit::Network::input_spec(&transformer).text,
            ..super::SPEC.footprint
        };
        let mut spec = ModelSpec::new(&super::SPEC, directory.folder, footprint);
        spec.image_mode = ImageMode::Either;
        spec.tiling = vae.usable_tiling();
        Ok(Self { spec, transformer })
    }

    fn vae(&self, half: Parts, load: &Load) -> anyhow::Result<Vae> {
        Vae::load_half(&self.spec.part("vae")?, half, load)
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
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn text_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn TextEncoder>> {
        T5Conditioner::load(&self.spec.directory, dit::TEXT_TOKENS, Padding::Masked, load)
    }

    fn video_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn VideoEncoder>> {
        Ok(Box::new(self.vae(Parts::Encoder, load)?))
    }

    fn video_decoder(&self, load: &Load) -> anyhow::Result<Box<dyn VideoDecoder>> {
        Ok(Box::new(self.vae(Parts::Decoder, load)?))
    }

    fn vae_cost(&self, half: Parts, load: &Load, clip: [usize; 3]) -> anyhow::Result<VaeCost> {
        Ok(self.vae(half, &load.of_headers())?.cost(half, clip)?)
    }

    fn denoiser(&self, load: &Load) -> anyhow::Result<Box<dyn Denoiser>> {
        Ok(Box::new(Dit::load(&self.spec.part("transformer")?, load)?))
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
        })
    }

    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor> {
        Ok(sample.clone()) // the posterior is normalised
    }

    fn condition_on(
        &self,
        encoded: &[Tensor],
        _size: &LatentSize,
        rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition> {
        Ok(ImageCondition::First(posterior_from(encoded)?.draw(rng)?)) // (B, C, 1, h, w)
    }
}

impl VideoEncoder for Vae {
    fn encode(&self, clip: &Tensor) -> anyhow::Result<Posterior> {
        Ok(self.statistics.normalize_posterior(&self.encode(clip)?)?)
    }
}

impl VideoDecoder for Vae {
    fn decode(&self, latents: &Tensor, _size: &LatentSize, rng: &mut Rng, emit: Emit) -> anyhow::Result<()> {
        let (vae, dtype) = (self, self.dtype());
        let latents = vae.statistics.denormalize(latents)?.to_dtype(dtype)?; // (1, C, F, h, w)
        if !vae.config.timestep_conditioning {
            return vae.decode_frames(&latents, None, rng, emit);
        }
        let noise = Tensor::from_vec(rng.randn(latents.elem_count()), latents.shape(), latents.device())?;
        let noise = (noise.to_dtype(dtype)? * DECODE_TIMESTEP)?;
        let latents = ((latents * (1.0 - DECODE_TIMESTEP))? + noise)?;
        let timestep = Tensor::new(&[DECODE_TIMESTEP as f32], latents.device())?.to_dtype(dtype)?;
        vae.decode_frames(&latents, Some(timestep), rng, emit)
    }
}
