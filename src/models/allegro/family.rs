//! An Allegro checkpoint: prompts, latents and frames, as in `AllegroPipeline` of diffusers.
//!
//! A latent frame is four frames, the first one's too, so that clips have a multiple of four frames. The pipeline takes other
//! numbers, and cuts frames off that it has made.

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Tensor};

use super::dit::{self, Dit};
use super::vae::{self, Parts, Vae};
use crate::diffusion::posterior::Posterior;
use crate::models::autoencoder::Codec as _;
use crate::models::family::{
    CheckpointDir, Denoiser, Emit, Family, FirstFrame, Footprint, ImageCondition, LatentSize, Layout, ModelSpec,
    TextEncoder, VaeCost, VideoDecoder, VideoEncoder, check_all, check_patchable, check_whole_frames,
};
use crate::models::t5_conditioner::{Padding, T5Conditioner};
use crate::models::transformer::Network as _;
use crate::nn::Load;
use crate::rng::Rng;

/// A checkpoint with its configs, but without weights.
#[derive(Debug)]
pub struct Allegro {
    spec: ModelSpec,
    transformer: dit::Config,
    vae: vae::Config,
}

impl Allegro {
    /// Reads the configs in `directory`.
    ///
    /// # Errors
    /// Fails for missing or broken configs, and for a transformer that does not match the VAE.
    pub fn open(directory: &CheckpointDir) -> anyhow::Result<Self> {
        let (transformer, vae): (dit::Config, vae::Config) =
            (directory.config("transformer")?, directory.config("vae")?);
        check(&transformer, &vae).with_context(|| directory.folder.display().to_string())?;
        let footprint = Footprint {
            first_frame: FirstFrame::Grouped,
            latent_channels: vae.latent_channels(),
            temporal_compression: vae.temporal_compression(),
            spatial_compression: vae.spatial_compression(),
            text: dit::Network::input_spec(&transformer).text,
        };
        let spec = ModelSpec {
            f32_latents: false,
            tiling: vae.usable_tiling(),
            ..ModelSpec::new(&super::SPEC, directory.folder, footprint)
        };
        Ok(Self { spec, transformer, vae })
    }

    fn vae(&self, half: Parts, load: &Load) -> anyhow::Result<Vae> {
        Vae::load_half(&self.spec.part("vae")?, half, load)
    }
}

/// Checks that the parts match.
fn check(transformer: &dit::Config, vae: &vae::Config) -> anyhow::Result<()> {
    let ([given, predicted], latent) = (
        [transformer.in_channels, transformer.out_channels],
        vae.latent_channels(),
    );
    ensure!(
        given == latent && predicted == latent,
        "transformer/config.json: in_channels is {given} and out_channels {predicted}, and the VAE has {latent} latent \
         channels; models from images, such as Allegro-TI2V, are not supported"
    );
    Ok(())
}

impl Family for Allegro {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn text_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn TextEncoder>> {
        T5Conditioner::load(&self.spec.directory, dit::TEXT_TOKENS, Padding::MaskedThroughout, load)
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
            check_whole_frames(num_frames, time),
        ])?;
        let size = [num_frames / time, height / space, width / space];
        dit::Network::input_spec(&self.transformer).check_size(size)?;
        let [frames, height, width] = size;
        Ok(LatentSize {
            num_frames,
            shape: [1, self.vae.latent_channels(), frames, height, width],
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
        bail!("Allegro makes clips from text alone; Allegro-TI2V, which starts from images, is not supported")
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
