//! Interface of a model family to sampling and training. Each family implements it in its own module.
//!
//! Parts are loaded on demand and freed when dropped: the text encoder is dropped before the transformer loads, the
//! transformer before the VAE.
//!
//! Shapes: B samples, F latent frames, C latent channels, h and w latent rows and columns, L text tokens, D text width;
//! T, H and W a clip's frames, rows and columns.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::denoiser::{Denoiser, Input, TextEmbeds};
use crate::diffusion::posterior::Posterior;
use crate::diffusion::schedulers::Scheduler;
use crate::nn::WeightFolder;
use crate::nn::adapter::Adapt;
use crate::rng::Rng;

/// Order of the network's axes, which is that of the noise drawn by the family's pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// (B, F, C, h, w)
    FramesFirst,
    /// (B, C, F, h, w), the order of the VAE
    ChannelsFirst,
}

impl Layout {
    /// Returns the axis of frames.
    pub fn frames(self) -> usize {
        match self {
            Self::FramesFirst => 1,
            Self::ChannelsFirst => 2,
        }
    }

    /// Returns the axis of channels.
    pub fn channels(self) -> usize {
        3 - self.frames()
    }

    /// Converts between the VAE's order and this one, in either direction.
    pub fn swap(self, latents: &Tensor) -> Result<Tensor> {
        match self {
            Self::FramesFirst => latents.transpose(1, 2)?.contiguous(),
            Self::ChannelsFirst => Ok(latents.clone()),
        }
    }
}

/// Size of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatentSize {
    /// Frames of the clip, as many as requested or a few fewer.
    pub num_frames: usize,
    /// Latents (1, ..., h, w) in the network's layout.
    pub shape: [usize; 5],
    /// Order of the axes.
    pub layout: Layout,
    /// Leading latent frames that only pad a patch, and are dropped before decoding.
    pub padding: usize,
    /// Tokens of the clip, for families whose pipeline passes it to the scheduler, which may shift sigmas by it.
    pub seq_len: Option<usize>,
    /// Type of latents between steps.
    pub dtype: DType,
}

impl LatentSize {
    /// Returns the latent frames, including padding.
    pub fn frames(&self) -> usize {
        self.shape[self.layout.frames()]
    }

    /// Returns the VAE's latents of the clip: (C, F, h, w), without padding.
    pub fn encoded(&self) -> [usize; 4] {
        let [_, _, _, height, width] = self.shape;
        let channels = self.shape[self.layout.channels()];
        [channels, self.frames() - self.padding, height, width]
    }
}

/// Checks that frames divide into patches of these rows and columns; the error names the nearest size that does.
pub fn check_patchable(height: usize, width: usize, [rows, columns]: [usize; 2]) -> anyhow::Result<()> {
    let fits = |side: usize, step: usize| side > 0 && side.is_multiple_of(step);
    let nearest = |side: usize, step: usize| ((side + step / 2) / step * step).max(step);
    anyhow::ensure!(
        fits(height, rows) && fits(width, columns),
        "{height}x{width} (height x width) must be multiples of {}; the nearest is {}x{}",
        if rows == columns {
            rows.to_string()
        } else {
            format!("{rows} and {columns}")
        },
        nearest(height, rows),
        nearest(width, columns)
    );
    Ok(())
}

/// Checks that all frames but the first divide into latent frames, `time` each; the error names the nearest number that
/// does.
pub fn check_num_frames(num_frames: usize, time: usize) -> anyhow::Result<()> {
    anyhow::ensure!(num_frames > 0, "a clip has at least one frame");
    anyhow::ensure!(
        num_frames % time == 1 % time,
        "{num_frames} frames must be a multiple of {time} and one more; the nearest is {}",
        (num_frames - 1 + time / 2) / time * time + 1
    );
    Ok(())
}

/// Combines the errors of all failed checks.
pub fn check_all<const N: usize>(checks: [anyhow::Result<()>; N]) -> anyhow::Result<()> {
    let wrong = checks.into_iter().filter_map(std::result::Result::err);
    let wrong: Vec<String> = wrong.map(|error| format!("{error:#}")).collect();
    anyhow::ensure!(wrong.is_empty(), wrong.join("; "));
    Ok(())
}

/// Use of an image by a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageMode {
    /// The checkpoint starts from text alone.
    Never,
    /// The checkpoint always starts from an image.
    Always,
    /// The first latent frame may be given clean.
    Either,
}

/// Image condition of the network.
#[derive(Debug, Clone)]
pub enum ImageCondition {
    /// Channels concatenated to the noisy latents.
    Concat(ConcatCondition),
    /// The first latent frame, clean, scaled and in the network's order: one frame of (B, ..., h, w). It is given at
    /// timestep 0 in place of a noisy one.
    First(Tensor),
}

/// Image condition concatenated to the noisy latents.
#[derive(Debug, Clone)]
pub struct ConcatCondition {
    /// Latents joined to the noisy ones by channel, in the network's order, with the same frames, rows and columns.
    pub latents: Tensor,
    /// Image embedding (B, tokens, width), for models that attend to it.
    pub tokens: Option<Tensor>,
    /// A second timestep (1), for models with one.
    pub ofs: Option<Tensor>,
}

impl ImageCondition {
    /// Returns the number of leading latent frames that are given clean.
    pub fn conditioned_frames(&self) -> usize {
        match self {
            Self::Concat(_) => 0,
            Self::First(_) => 1,
        }
    }
}

/// Conditions besides noisy latents and their timestep.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// Encoded prompts.
    pub text: TextEmbeds,
    /// Encoded image, for image-to-video checkpoints.
    pub image: Option<ImageCondition>,
    /// Frames per second of each of the B clips.
    pub frame_rates: Vec<f64>,
}

impl Conditions {
    /// Network input from noisy latents (B, ..., h, w), and timesteps (B) or (B, F). An image condition need only
    /// broadcast to B; a clean first frame is part of the latents already.
    pub fn input(&self, latents: Tensor, timestep: Tensor, layout: Layout) -> Result<Input> {
        let mut input = Input {
            frame_rates: Some(self.frame_rates.clone()),
            ..Input::new(latents, timestep, self.text.clone())
        };
        if let Some(ImageCondition::Concat(image)) = &self.image {
            let batch = input.latents.dim(0)?;
            let for_all = |part: &Tensor| part.broadcast_as([&[batch], &part.dims()[1..]].concat());
            let latents = for_all(&image.latents)?.to_dtype(input.latents.dtype())?;
            input.latents = Tensor::cat(&[&input.latents, &latents], layout.channels())?;
            input.image = image.tokens.as_ref().map(for_all).transpose()?;
            input.ofs = image.ofs.clone();
        }
        Ok(input)
    }
}

/// Names of a record's tensors, and their shapes without the batch.
pub type TensorSpecs = Vec<(&'static str, Vec<usize>)>;

/// A loaded text encoder.
pub trait TextEncoder {
    /// Embeds a prompt: (1, L, D), and its mask if the family has one.
    fn embed(&self, prompt: &str) -> anyhow::Result<TextEmbeds>;

    /// Returns the number of tokens at a prompt's end beyond the maximum length, which [`embed`](Self::embed) leaves
    /// out.
    fn truncated_tokens(&self, _prompt: &str) -> anyhow::Result<usize> {
        Ok(0)
    }
}

/// A loaded video encoder.
pub trait VideoEncoder {
    /// Returns the posterior of clips (B, 3, T, H, W) of -1..1: (B, C, F, h, w), whose samples `Family::latents`
    /// scales. If that needs weights of the encoder, they are scaled already.
    fn encode(&self, clip: &Tensor) -> anyhow::Result<Posterior>;

    /// Returns everything that is cached of the images (B, 3, H, W) of -1..1 from which clips of `num_frames` frames
    /// start; `Family::image_tensor_specs` names the tensors if the checkpoint always starts from an image. Nothing is
    /// random. The default is the posterior of a clip of that one frame, which [`posterior_from`] rebuilds.
    fn encode_image(&self, image: &Tensor, _num_frames: usize) -> anyhow::Result<Vec<Tensor>> {
        let Posterior { mean, logvar } = self.encode(&image.unsqueeze(2)?)?; // (B, C, 1, h, w)
        Ok(vec![mean, logvar])
    }
}

/// Rebuilds an image's posterior from its mean and its log-variance.
pub fn posterior_from(encoded: &[Tensor]) -> anyhow::Result<Posterior> {
    let [mean, logvar] = encoded else {
        anyhow::bail!("{} tensors for an image's mean and log-variance", encoded.len());
    };
    let (mean, logvar) = (mean.clone(), logvar.clone());
    Ok(Posterior { mean, logvar })
}

/// Size of a family's embedded prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextShape {
    /// Number of tokens, L
    pub tokens: usize,
    /// Width of a token, D
    pub width: usize,
    /// True if padding is masked.
    pub masked: bool,
}

impl TextShape {
    /// Returns the tensors of a caption's record, in the order of `TextEmbeds::tensors`.
    pub fn kept(&self) -> TensorSpecs {
        let mut kept = vec![("embeds", vec![self.tokens, self.width])];
        if self.masked {
            kept.push(("mask", vec![self.tokens]));
        }
        kept
    }
}

/// Callback for decoded frames (1, 3, T, H, W) of about -1..1 as they come.
pub type Emit<'a> = &'a mut dyn FnMut(Tensor) -> anyhow::Result<()>;

/// A checkpoint of a family.
pub trait Family {
    /// Returns its folder, with the requested variant of its weights.
    fn directory(&self) -> &WeightFolder;

    /// Returns the diffusers class that loads it, for text or image input.
    fn pipeline(&self, from_image: bool) -> &'static str;

    /// Returns the folders of the text encoder.
    fn text_encoder_parts(&self) -> &'static [&'static str];

    /// Returns the folders of the video encoder.
    fn video_encoder_parts(&self) -> &'static [&'static str];

    /// Loads the text encoder and its tokenizer.
    fn text_encoder(&self) -> anyhow::Result<Box<dyn TextEncoder>>;

    /// Loads the encoder half of the VAE, and an image encoder if the model has one. `tiling`: large frames in
    /// overlapping tiles, if these line up; `slicing`: the clips of a batch one by one.
    fn video_encoder(&self, tiling: bool, slicing: bool) -> anyhow::Result<Box<dyn VideoEncoder>>;

    /// Returns the size of every embedded prompt.
    fn text_shape(&self) -> TextShape;

    /// Returns the checkpoint's own scheduler.
    fn scheduler(&self) -> anyhow::Result<Scheduler>;

    /// Loads the transformer, with adapters if `adapt` has some.
    fn denoiser(&self, adapt: Option<Arc<dyn Adapt>>) -> anyhow::Result<Box<dyn Denoiser>>;

    /// Returns the latent size of a clip.
    ///
    /// # Errors
    /// Fails for a size that the model does not support, with the nearest one that it does.
    fn latent_size(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<LatentSize>;

    /// Returns the default frames per second of clips.
    fn frame_rate(&self) -> f64;

    /// Returns the use of an image by this checkpoint.
    fn image_mode(&self) -> ImageMode;

    /// Converts a sample of a clip's posterior (B, C, F, h, w) for the mix with noise in training: scaled, with frames
    /// prepended to fill a patch.
    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor>;

    /// Returns the tensors of the first frame in a clip's record, in the order of `VideoEncoder::encode_image`: only if
    /// the checkpoint always starts from an image.
    fn image_tensor_specs(&self, _canvas: &LatentSize) -> TensorSpecs {
        Vec::new()
    }

    /// Returns the image condition for encoded images, (B, ...) of each tensor. Posteriors among them are sampled with
    /// noise from `rng`; without one, their mean is taken.
    fn condition_on(
        &self,
        encoded: &[Tensor],
        canvas: &LatentSize,
        rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition>;

    /// Loads the decoder, and frees it.
    ///
    /// # Errors
    /// Fails if [`decode`](Self::decode) would.
    fn check_decoder(&self) -> anyhow::Result<()>;

    /// Decodes the network's latents, without padding: loads, uses and frees the VAE. Noise for decoding comes from
    /// `rng`, after all draws of denoising.
    fn decode(&self, latents: &Tensor, canvas: &LatentSize, rng: &mut Rng, emit: Emit) -> anyhow::Result<()>;

    /// Embeds prompts, (B, L, D): loads, uses and frees the text encoder.
    fn embed(&self, prompts: &[&str]) -> anyhow::Result<TextEmbeds> {
        let conditioner = self.text_encoder()?;
        for prompt in prompts {
            let lost = conditioner.truncated_tokens(prompt)?;
            if lost > 0 {
                let room = self.text_shape().tokens;
                log::warn!("the prompt is truncated to {room} tokens; {lost} at its end are lost: {prompt:?}");
            }
        }
        let texts = prompts.iter().map(|prompt| conditioner.embed(prompt));
        Ok(TextEmbeds::cat(&texts.collect::<anyhow::Result<Vec<_>>>()?)?)
    }

    /// Encodes an image (1, 3, H, W) of -1..1 to start from: loads, uses and frees the encoders.
    fn image_condition(&self, image: &Tensor, canvas: &LatentSize, rng: &mut Rng) -> anyhow::Result<ImageCondition> {
        let encoded = self
            .video_encoder(false, false)?
            .encode_image(image, canvas.num_frames)?;
        self.condition_on(&encoded, canvas, Some(rng))
    }

    /// Encodes a clip (1, 3, T, H, W) of -1..1 to the network's latents: loads, uses and frees the VAE.
    fn encode(&self, clip: &Tensor, canvas: &LatentSize, rng: &mut Rng) -> anyhow::Result<Tensor> {
        let posterior = self.video_encoder(false, false)?.encode(clip)?;
        let latents = self.latents(&posterior.draw(Some(rng))?)?;
        Ok(canvas.layout.swap(&latents)?)
    }
}
