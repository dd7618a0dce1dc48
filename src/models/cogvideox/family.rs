//! A CogVideoX checkpoint: prompts, latents and frames, as in `CogVideoXPipeline` and its image-to-video and
//! video-to-video variants in diffusers.

use anyhow::bail;
use candle_core::Tensor;

use super::dit::{self, Dit};
use super::vae::{self, Parts, Vae};
use crate::diffusion::posterior::Posterior;
use crate::models::autoencoder::Codec as _;
use crate::models::family::{
    CheckpointDir, ConcatCondition, Denoiser, Emit, Family, FirstFrame, Footprint, ImageCondition, ImageMode,
    ImageRecord, LatentSize, Layout, ModelSpec, Scalar, Scalars, TextEncoder, VaeCost, VideoDecoder, VideoEncoder,
    check_all, check_num_frames, check_patchable, posterior_from,
};
use crate::models::t5_conditioner::{Padding, T5Conditioner};
use crate::models::transformer::Network as _;
use crate::nn::Load;
use crate::rng::Rng;

/// Value of `ofs` in image-to-video pipelines.
const OFS: f64 = 2.0;

/// A checkpoint with its configs, but without weights.
#[derive(Debug)]
pub struct CogVideoX {
    spec: ModelSpec,
    transformer: dit::Config,
    vae: vae::Config,
}

impl CogVideoX {
    /// Reads the configs in `directory`.
    pub fn open(directory: &CheckpointDir) -> anyhow::Result<Self> {
        let (vae, transformer): (vae::Config, dit::Config) =
            (directory.config("vae")?, directory.config("transformer")?);
        let (image_mode, image_record) = match transformer.in_channels == 2 * transformer.out_channels {
            true => (ImageMode::Always, ImageRecord::Posterior),
            false => (ImageMode::Never, ImageRecord::None),
        };
        let footprint = Footprint {
            first_frame: FirstFrame::Alone,
            latent_channels: vae.latent_channels,
            temporal_compression: vae.temporal_compression_ratio as usize,
            spatial_compression: vae.spatial_compression(),
            text: dit::Network::input_spec(&transformer).text,
        };
        let spec = ModelSpec {
            image_mode,
            image_record,
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

impl Family for CogVideoX {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn text_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn TextEncoder>> {
        let length = self.transformer.max_text_seq_length;
        T5Conditioner::load(&self.spec.directory, length, Padding::Counts, load)
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
        let shape = [
            1,
            frames + padding,
            self.transformer.out_channels,
            height / space,
            width / space,
        ];
        Ok(LatentSize {
            num_frames,
            shape,
            layout: Layout::FramesFirst,
            padding,
            seq_len: None,
        })
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

    fn condition_on(
        &self,
        encoded: &[Tensor],
        size: &LatentSize,
        rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition> {
        let sample = posterior_from(encoded)?.draw(rng)?; // (B, C, 1, h, w)
        let latents = size.layout.swap(&self.vae.scale_image(&sample)?)?; // (B, 1, C, h, w)
        let (batch, _, channels, height, width) = latents.dims5()?;
        let rest = (batch, size.frames() - 1, channels, height, width);
        let rest = Tensor::zeros(rest, latents.dtype(), latents.device())?;
        let ofs = self
            .transformer
            .ofs_embed_dim
            .map(|_| Scalars::of(Scalar::Ofs, vec![OFS]));
        Ok(ImageCondition::Concat(ConcatCondition {
            latents: Tensor::cat(&[latents, rest], 1)?, // (B, F, C, h, w)
            tokens: None,
            scalars: ofs.unwrap_or_default(),
        }))
    }
}

impl VideoEncoder for Vae {
    fn encode(&self, clip: &Tensor) -> anyhow::Result<Posterior> {
        Ok(self.encode(clip)?)
    }
}

impl VideoDecoder for Vae {
    fn decode(&self, latents: &Tensor, size: &LatentSize, _rng: &mut Rng, emit: Emit) -> anyhow::Result<()> {
        let frames = latents.dim(1)? - size.padding;
        let latents = size.layout.swap(&latents.narrow(1, size.padding, frames)?)?; // (1, C, F, h, w)
        let latents = self.config.unscale(&latents.to_dtype(self.dtype())?)?;
        self.decode_batches(&latents.contiguous()?, emit)
    }
}
