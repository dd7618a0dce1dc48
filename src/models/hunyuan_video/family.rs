//! A HunyuanVideo checkpoint: prompts, latents and frames, as in `HunyuanVideoPipeline` and
//! `HunyuanVideoImageToVideoPipeline` of diffusers.
//!
//! The model was distilled from classifier-free guidance, so it is told a guidance scale, and a negative prompt is for
//! `true_cfg_scale` alone. Checkpoints that start from an image read the prompt together with it; the image's most likely
//! latents are joined to the noisy ones by channel, or are the first frame.

use anyhow::{Context, ensure};
use candle_core::{DType, Tensor};

use super::dit::{self, Dit, ImageConditionType};
use super::vae::{self, Parts, Vae};
use crate::diffusion::guidance::GuidanceMode;
use crate::diffusion::posterior::Posterior;
use crate::models::autoencoder::Codec as _;
use crate::models::family::{
    CheckpointDir, ConcatCondition, Denoiser, Emit, Family, FirstFrame, Footprint, ImageCondition, ImageMode,
    ImageRecord, LatentSize, Layout, ModelSpec, Scalars, TextEncoder, VaeCost, VideoDecoder, VideoEncoder, check_all,
    check_num_frames, check_patchable, posterior_from,
};
use crate::models::llama_conditioner::{ChatTemplate, LlamaConditioner};
use crate::models::llava;
use crate::models::llava_conditioner::{LlavaConditioner, PictureTemplate};
use crate::models::transformer::Network as _;
use crate::nn::Load;
use crate::rng::Rng;

/// `DEFAULT_PROMPT_TEMPLATE` of the pipeline from text.
const TEMPLATE: ChatTemplate = ChatTemplate {
    before: "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: \
             1. The main content and theme of the video.\
             2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects.\
             3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.\
             4. background environment, light, style and atmosphere.\
             5. camera angles, movements, and transitions used in the video:<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\n",
    after: "<|eot_id|>",
    cropped: 95,
    tokens: dit::TEXT_TOKENS,
};

/// The same of the pipeline from an image.
const TEMPLATE_WITH_IMAGE: ChatTemplate = ChatTemplate {
    before: "<|start_header_id|>system<|end_header_id|>\n\n<image>\nDescribe the video by detailing the following \
             aspects according to the reference image: \
             1. The main content and theme of the video.\
             2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects.\
             3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.\
             4. background environment, light, style and atmosphere.\
             5. camera angles, movements, and transitions used in the video:<|eot_id|>\n\n\
             <|start_header_id|>user<|end_header_id|>\n\n",
    after: "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    cropped: 103,
    tokens: dit::TEXT_TOKENS,
};

/// Share of noise in what sampling from an image starts with; the rest is the image, in every frame.
const NOISE_SHARE: f32 = 0.999;

/// Frames at a clip's start that the pipeline drops where the image is joined by channel.
const DROPPED_FRAMES: usize = 4;

/// A checkpoint with its configs, but without weights.
#[derive(Debug)]
pub struct HunyuanVideo {
    spec: ModelSpec,
    transformer: dit::Config,
    vae: vae::Config,
    /// Text encoder of checkpoints that start from an image.
    llava: Option<llava::Config>,
}

impl HunyuanVideo {
    /// Reads the configs in `directory`.
    ///
    /// # Errors
    /// Fails for missing or broken configs, and for a transformer that does not match the VAE.
    pub fn open(directory: &CheckpointDir) -> anyhow::Result<Self> {
        let (transformer, vae): (dit::Config, vae::Config) =
            (directory.config("transformer")?, directory.config("vae")?);
        let llava = transformer
            .image_condition_type
            .map(|_| directory.config_by("text_encoder", llava::Config::parse));
        let llava = llava.transpose()?;
        let mut text = dit::Network::input_spec(&transformer).text;
        if let Some(llava) = &llava {
            text.tokens = template(&transformer).tokens(llava);
        }
        let footprint = Footprint {
            first_frame: FirstFrame::Alone,
            latent_channels: vae.latent_channels(),
            temporal_compression: vae.temporal_compression(),
            spatial_compression: vae.spatial_compression(),
            text,
        };
        let mut spec = ModelSpec {
            text_encoder_parts: LlamaConditioner::PARTS,
            tiling: vae.usable_tiling(),
            guidance: match transformer.guidance_embeds {
                true => GuidanceMode::Embedded,
                false => GuidanceMode::BuiltIn,
            },
            ..ModelSpec::new(&super::SPEC, directory.folder, footprint)
        };
        if llava.is_some() {
            spec.text_encoder_parts = LlavaConditioner::PARTS;
            spec.sees_pictures = true;
            spec.image_mode = ImageMode::Always;
            spec.image_record = ImageRecord::Posterior;
        }
        let this = Self {
            spec,
            transformer,
            vae,
            llava,
        };
        this.check().with_context(|| directory.folder.display().to_string())?;
        Ok(this)
    }

    /// Checks that the parts match.
    fn check(&self) -> anyhow::Result<()> {
        let (config, latent) = (&self.transformer, self.vae.latent_channels());
        ensure!(
            config.out_channels == latent,
            "transformer/config.json: out_channels is {} and the VAE has {latent} latent channels",
            config.out_channels
        );
        let wanted = match config.image_condition_type {
            Some(ImageConditionType::LatentConcat) => 2 * latent + 1,
            Some(ImageConditionType::TokenReplace) | None => latent,
        };
        ensure!(
            config.in_channels == wanted,
            "transformer/config.json: in_channels is {}, and {wanted} with image_condition_type {:?} and {latent} latent \
             channels; other models from images, such as SkyReels, are not supported",
            config.in_channels,
            config.image_condition_type
        );
        let Some(llava) = &self.llava else {
            return Ok(());
        };
        ensure!(
            llava.text.hidden_size == config.text_embed_dim,
            "transformer/config.json: text_embed_dim is {} and the text encoder's hidden_size {}",
            config.text_embed_dim,
            llava.text.hidden_size
        );
        Ok(())
    }

    fn vae(&self, half: Parts, load: &Load) -> anyhow::Result<Vae> {
        Vae::load_half(&self.spec.part("vae")?, half, load)
    }
}

/// Returns the template of a prompt with an image.
fn template(config: &dit::Config) -> PictureTemplate {
    PictureTemplate {
        chat: TEMPLATE_WITH_IMAGE,
        interleave: match config.image_condition_type {
            Some(ImageConditionType::TokenReplace) => 4,
            Some(ImageConditionType::LatentConcat) | None => 2,
        },
    }
}

impl Family for HunyuanVideo {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn text_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn TextEncoder>> {
        match &self.llava {
            Some(llava) => LlavaConditioner::load(&self.spec.directory, llava, template(&self.transformer), load),
            None => LlamaConditioner::load(&self.spec.directory, TEMPLATE, load),
        }
    }

    fn video_encoder(&self, load: &Load) -> anyhow::Result<Box<dyn VideoEncoder>> {
        Ok(Box::new(self.vae(Parts::Encoder, load)?))
    }

    fn video_decoder(&self, load: &Load) -> anyhow::Result<Box<dyn VideoDecoder>> {
        Ok(Box::new(Decoder {
            vae: self.vae(Parts::Decoder, load)?,
            dropped: match self.transformer.image_condition_type {
                Some(ImageConditionType::LatentConcat) => DROPPED_FRAMES,
                Some(ImageConditionType::TokenReplace) | None => 0,
            },
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
        let [depth, rows, columns] = self.transformer.patch();
        check_all([
            check_patchable(height, width, [space * rows, space * columns]),
            check_num_frames(num_frames, time),
        ])?;
        let (frames, height, width) = ((num_frames - 1) / time + 1, height / space, width / space);
        dit::Network::input_spec(&self.transformer).check_size([frames, height, width])?;
        Ok(LatentSize {
            num_frames,
            shape: [1, self.vae.latent_channels(), frames, height, width],
            layout: Layout::ChannelsFirst,
            padding: 0,
            seq_len: Some(frames / depth * (height / rows) * (width / columns)),
        })
    }

    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor> {
        Ok(self.vae.normalize(&sample.to_dtype(DType::F32)?)?) // (B, C, F, h, w)
    }

    fn condition_on(
        &self,
        encoded: &[Tensor],
        size: &LatentSize,
        _rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition> {
        let first = self.latents(&posterior_from(encoded)?.mode())?; // (B, C, 1, h, w)
        if self.transformer.replaces_tokens() {
            return Ok(ImageCondition::First(first));
        }
        // A channel behind the image's: 1 where it is given.
        let given = first.narrow(1, 0, 1)?.ones_like()?;
        let image = Tensor::cat(&[first, given], 1)?;
        Ok(ImageCondition::Concat(ConcatCondition {
            latents: image.pad_with_zeros(2, 0, size.frames() - 1)?, // (B, C + 1, F, h, w)
            tokens: None,
            scalars: Scalars::default(),
        }))
    }

    fn start_from_image(&self, noise: Tensor, image: &ImageCondition) -> anyhow::Result<Tensor> {
        let first = match image {
            ImageCondition::First(first) => first.clone(),
            ImageCondition::Concat(image) => {
                let channels = self.vae.latent_channels();
                image.latents.narrow(1, 0, channels)?.narrow(2, 0, 1)?
            }
        }; // (1, C, 1, h, w)
        let of_image = (first * f64::from(1.0 - NOISE_SHARE))?;
        Ok((noise * f64::from(NOISE_SHARE))?.broadcast_add(&of_image)?)
    }
}

/// Decoder half of the VAE, which may drop a clip's first frames.
struct Decoder {
    vae: Vae,
    dropped: usize,
}

impl VideoEncoder for Vae {
    fn encode(&self, clip: &Tensor) -> anyhow::Result<Posterior> {
        Ok(self.encode(clip)?)
    }
}

impl VideoDecoder for Decoder {
    fn decode(&self, latents: &Tensor, _size: &LatentSize, _rng: &mut Rng, emit: Emit) -> anyhow::Result<()> {
        let latents = self.vae.config.denormalize(&latents.to_dtype(self.vae.dtype())?)?;
        let mut dropped = self.dropped;
        self.vae.decode_batches(&latents, &mut |frames: Tensor| {
            let count = frames.dim(2)?;
            let first = dropped.min(count);
            dropped -= first;
            match first == count {
                true => Ok(()),
                false => emit(frames.narrow(2, first, count - first)?),
            }
        })
    }
}
