//! A Mochi checkpoint: prompts, latents and frames, as in `MochiPipeline` of diffusers.

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Tensor};
use serde_json::Value;

use super::dit::{self, Dit};
use super::vae::{self, Parts, Vae};
use crate::diffusers_config as config;
use crate::diffusion::posterior::Posterior;
use crate::diffusion::schedulers::StepSpacing;
use crate::models::autoencoder::Codec as _;
use crate::models::family::{
    CheckpointDir, Denoiser, Emit, Family, FirstFrame, Footprint, ImageCondition, LatentSize, Layout, ModelSpec,
    TextEncoder, VaeCost, VideoDecoder, VideoEncoder, check_all, check_num_frames, check_patchable,
};
use crate::models::t5_conditioner::{Padding, T5Conditioner};
use crate::models::transformer::Network as _;
use crate::nn::Load;
use crate::rng::Rng;

/// Key of `model_index.json`: true if an empty prompt has no tokens.
const FORCE_ZEROS: &str = "force_zeros_for_empty_prompt";

/// A checkpoint with its configs, but without weights.
#[derive(Debug)]
pub struct Mochi {
    spec: ModelSpec,
    transformer: dit::Config,
    vae: vae::Config,
}

impl Mochi {
    /// Reads the configs in `directory`.
    ///
    /// # Errors
    /// Fails for missing or broken configs, and for a transformer that does not match the VAE.
    pub fn open(directory: &CheckpointDir) -> anyhow::Result<Self> {
        let (transformer, vae): (dit::Config, vae::Config) =
            (directory.config("transformer")?, directory.config("vae")?);
        let index = directory.folder.join("model_index.json");
        let force_zeros = config::text(&index).and_then(|text| force_zeros(&text));
        let force_zeros = force_zeros.with_context(|| index.display().to_string())?;
        let (channels, predicted) = (transformer.in_channels, transformer.predicted_channels());
        ensure!(
            channels == vae.latent_channels() && predicted == channels,
            "{}: transformer/config.json: in_channels is {channels} and out_channels {predicted}, and the VAE has {} latent \
             channels",
            directory.folder.display(),
            vae.latent_channels()
        );
        let footprint = Footprint {
            first_frame: FirstFrame::Alone,
            latent_channels: channels,
            temporal_compression: vae.temporal_compression(),
            spatial_compression: vae.spatial_compression(),
            text: dit::Network::input_spec(&transformer).text,
        };
        let spec = ModelSpec {
            tiling: vae.usable_tiling(),
            f32_latents: false,
            step_spacing: StepSpacing::LinearQuadratic,
            empty_prompts_have_no_tokens: force_zeros,
            ..ModelSpec::new(&super::SPEC, directory.folder, footprint)
        };
        Ok(Self { spec, transformer, vae })
    }

    fn vae(&self, half: Parts, load: &Load) -> anyhow::Result<Vae> {
        Vae::load_half(&self.spec.part("vae")?, half, load)
    }
}

/// Returns what the text of a `model_index.json` says of empty prompts.
fn force_zeros(index: &str) -> anyhow::Result<bool> {
    match config::keys(index)?.get(FORCE_ZEROS) {
        None => Ok(false),
        Some(Value::Bool(force_zeros)) => Ok(*force_zeros),
        Some(other) => bail!("{FORCE_ZEROS} must be true or false, found {other}"),
    }
}

impl Family for Mochi {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn text_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn TextEncoder>> {
        let padding = Padding::ZerosMasked {
            empty: self.spec.empty_prompts_have_no_tokens,
        };
        T5Conditioner::load(&self.spec.directory, dit::TEXT_TOKENS, padding, load)
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
        let [time, space] = self.spec.footprint.compression();
        let [_, rows, columns] = self.transformer.patch();
        check_all([
            check_patchable(height, width, [space * rows, space * columns]),
            check_num_frames(num_frames, time),
        ])?;
        Ok(LatentSize {
            num_frames,
            shape: [
                1,
                self.transformer.in_channels,
                (num_frames - 1) / time + 1,
                height / space,
                width / space,
            ],
            layout: Layout::ChannelsFirst,
            padding: 0,
            seq_len: None,
        })
    }

    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor> {
        Ok(self.vae.normalize(&sample.to_dtype(DType::F32)?)?) // (B, C, F, h, w)
    }

    fn condition_on(
        &self,
        _encoded: &[Tensor],
        _size: &LatentSize,
        _rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition> {
        bail!("Mochi 1 makes clips from text alone: it has no use for an image")
    }
}

impl VideoEncoder for Vae {
    fn encode(&self, clip: &Tensor) -> anyhow::Result<Posterior> {
        Ok(self.encode(clip)?)
    }
}

impl VideoDecoder for Vae {
    fn decode(&self, latents: &Tensor, _size: &LatentSize, _rng: &mut Rng, emit: Emit) -> anyhow::Result<()> {
        let latents = self.config.denormalize(&latents.to_dtype(self.dtype())?)?;
        self.decode_batches(&latents, emit)
    }
}
