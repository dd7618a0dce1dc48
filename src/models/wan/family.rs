//! A Wan 2.1 checkpoint: prompts, latents and frames, as in `WanPipeline` and `WanImageToVideoPipeline` of diffusers.
//!
//! For an image, the VAE encodes a whole clip of the image followed by black, of which the most likely latents are
//! taken, and CLIP embeds the image as well. Here CLIP gets the picture at the clip's size; in the pipeline it gets the
//! original picture. Both are the same if nothing is resized.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Tensor};
use serde::Deserialize;
use serde_json::Value;

use super::dit::{self, Dit};
use super::vae::{self, Parts, Vae};
use crate::diffusion::posterior::Posterior;
use crate::models::autoencoder::Codec as _;
use crate::models::family::{
    CheckpointDir, ConcatCondition, Denoiser, Emit, Family, FirstFrame, Footprint, ImageCondition, ImageMode,
    ImageRecord, LatentSize, Layout, ModelSpec, Scalars, TextEncoder, VaeCost, VideoDecoder, VideoEncoder, check_all,
    check_num_frames, check_patchable,
};
use crate::models::t5_conditioner::{Padding, T5Conditioner};
use crate::models::transformer::Network as _;
use crate::nn::{Load, Weights};
use crate::rng::Rng;
use crate::vision::{ClipVision, Preprocessor, clip};

/// A checkpoint with its configs, but without weights.
#[derive(Debug)]
pub struct Wan {
    spec: ModelSpec,
    transformer: dit::Config,
    vae: vae::Config,
    /// Image encoder of checkpoints that start from an image.
    image_encoder: Option<clip::Config>,
}

/// Keys of `model_index.json` that only Wan 2.2 has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Index {
    /// Class and library, both null if absent.
    transformer_2: Value,
    boundary_ratio: Option<f64>,
    expand_timesteps: bool,
}

impl Wan {
    /// Reads the configs in `directory`.
    ///
    /// # Errors
    /// Fails for missing or broken configs, a checkpoint of Wan 2.2, and a transformer that does not match the VAE.
    pub fn open(directory: &CheckpointDir) -> anyhow::Result<Self> {
        Index::read(&directory.folder.join("model_index.json"))?;
        let (transformer, vae): (dit::Config, vae::Config) =
            (directory.config("transformer")?, directory.config("vae")?);
        let image_encoder = transformer
            .image_dim
            .map(|_| directory.config_by("image_encoder", clip::Config::parse));
        let image_encoder = image_encoder.transpose()?;
        let footprint = Footprint {
            first_frame: FirstFrame::Alone,
            latent_channels: vae.latent_channels(),
            temporal_compression: vae.temporal_compression(),
            spatial_compression: vae.spatial_compression(),
            text: dit::Network::input_spec(&transformer).text,
        };
        let mut spec = ModelSpec::new(&super::SPEC, directory.folder, footprint);
        spec.tiling = vae.usable_tiling();
        if let Some(encoder) = &image_encoder {
            spec.video_encoder_parts = &["vae", "image_processor", "image_encoder"];
            spec.image_mode = ImageMode::Always;
            spec.image_record = ImageRecord::LatentsAndTokens([encoder.tokens(), encoder.hidden_size]);
        }
        let this = Self {
            spec,
            transformer,
            vae,
            image_encoder,
        };
        this.check().with_context(|| directory.folder.display().to_string())?;
        Ok(this)
    }

    /// Checks that the parts match.
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

    fn vae(&self, half: Parts, load: &Load) -> anyhow::Result<Vae> {
        Vae::load_half(&self.spec.part("vae")?, half, load)
    }

    fn vision(&self, config: &clip::Config, load: &Load) -> anyhow::Result<Vision> {
        let folder = self.spec.part("image_encoder")?;
        let weights = Weights::read(&folder, load)?;
        weights.ensure_memory(&[])?;
        Ok(Vision {
            preprocessor: Preprocessor::load(&self.spec.part("image_processor")?)?,
            encoder: ClipVision::new(config, weights).with_context(|| folder.display().to_string())?,
        })
    }
}

impl Index {
    /// Rejects a checkpoint of Wan 2.2.
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
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn text_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn TextEncoder>> {
        T5Conditioner::load(&self.spec.directory, dit::TEXT_TOKENS, Padding::Zeros, load)
    }

    fn video_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn VideoEncoder>> {
        let vision = self.image_encoder.as_ref().map(|config| self.vision(config, load));
        Ok(Box::new(Coder {
            vae: self.vae(Parts::Encoder, load)?,
            vision: vision.transpose()?,
        }))
    }

    fn video_decoder(&self, load: &Load) -> anyhow::Result<Box<dyn VideoDecoder>> {
        Ok(Box::new(Coder {
            vae: self.vae(Parts::Decoder, load)?,
            vision: None,
        }))
    }

    fn vae_cost(&self, half: Parts, load: &Load, clip: [usize; 3]) -> anyhow::Result<VaeCost> {
        Ok(self.vae(half, &load.of_headers())?.cost(half, clip)?)
    }

    fn denoiser(&self, load: &Load) -> anyhow::Result<Box<dyn Denoiser>> {
        Ok(Box::new(Dit::load(&self.spec.part("transformer")?, load)?))
    }

    fn latent_size(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<LatentSize> {
        let [time, space] = self.spec.footprint.compression();
        let [_, rows, columns] = self.transformer.patch_size.map(|patch| patch * space);
        // The pipelines round to a multiple plus one; a bucket must be exact.
        check_all([
            check_patchable(height, width, [rows, columns]),
            check_num_frames(num_frames, time),
        ])?;
        let frames = (num_frames - 1) / time + 1;
        dit::Network::input_spec(&self.transformer).check_size([frames, height / space, width / space])?;
        Ok(LatentSize {
            num_frames,
            shape: [1, self.vae.latent_channels(), frames, height / space, width / space],
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
        encoded: &[Tensor],
        _size: &LatentSize,
        _rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition> {
        let [latents, tokens] = encoded else {
            bail!("{} tensors for an image's latents and tokens", encoded.len());
        };
        let latents = self.latents(latents)?; // (B, C, F, h, w)
        let (batch, _, frames, height, width) = latents.dims5()?;
        // A channel for each frame of the clip in a latent frame: 1 if it is given.
        let known = |frames, given: f32| {
            let shape = (batch, self.vae.temporal_compression(), frames, height, width);
            Tensor::full(given, shape, latents.device())
        };
        let mask = Tensor::cat(&[known(1, 1.0)?, known(frames - 1, 0.0)?], 2)?;
        Ok(ImageCondition::Concat(ConcatCondition {
            latents: Tensor::cat(&[&mask, &latents], 1)?,
            tokens: Some(tokens.clone()),
            scalars: Scalars::default(),
        }))
    }
}

/// Encoder or decoder of clips: a half of the VAE, and CLIP if a clip to encode starts from an image.
struct Coder {
    vae: Vae,
    vision: Option<Vision>,
}

/// CLIP with its preprocessing.
struct Vision {
    preprocessor: Preprocessor,
    encoder: ClipVision,
}

impl VideoEncoder for Coder {
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
            .context("image_encoder/config.json and image_processor/preprocessor_config.json do not match")?;
        Ok(vec![
            self.vae.encode(&clip)?.mode(), // (B, C, F, h, w)
            tokens,                         // (B, tokens, width)
        ])
    }
}

impl VideoDecoder for Coder {
    fn decode(&self, latents: &Tensor, _size: &LatentSize, _rng: &mut Rng, emit: Emit) -> anyhow::Result<()> {
        let latents = self.vae.config.denormalize(&latents.to_dtype(self.vae.dtype())?)?;
        self.vae.decode_batches(&latents, emit)
    }
}
