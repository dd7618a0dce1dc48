//! What the sampler and the trainer ask of a family of models. One room answers these, and nothing else.
//!
//! Parts are loaded when they are asked for and freed when they are dropped: the text encoder is gone before the
//! transformer loads, the transformer before the VAE.
//!
//! Shapes: B samples, F latent frames, C latent channels, h and w latent rows and columns, L text tokens, D text width;
//! T, H and W a clip's frames, rows and columns.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::denoiser::{Denoiser, Input, Text};
use crate::diffusion::posterior::Posterior;
use crate::diffusion::schedulers::Scheduler;
use crate::nn::WeightFolder;
use crate::nn::weights::Planter;
use crate::rng::Rng;

/// The order of the network's axes, which is that of the noise that the family's pipeline draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// (B, F, C, h, w)
    FramesFirst,
    /// (B, C, F, h, w), as the VAE has it
    ChannelsFirst,
}

impl Layout {
    /// The axis of frames.
    pub fn frames(self) -> usize {
        match self {
            Self::FramesFirst => 1,
            Self::ChannelsFirst => 2,
        }
    }

    /// The axis of channels.
    pub fn channels(self) -> usize {
        3 - self.frames()
    }

    /// From the VAE's order to this one, and from this one to the VAE's.
    pub fn swap(self, latents: &Tensor) -> Result<Tensor> {
        match self {
            Self::FramesFirst => latents.transpose(1, 2)?.contiguous(),
            Self::ChannelsFirst => Ok(latents.clone()),
        }
    }
}

/// The size of what is sampled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canvas {
    /// Of the clip, which has as many frames or a few fewer than were asked for.
    pub num_frames: usize,
    /// Latents (1, ..., h, w) as the network sees them, in the order of `layout`.
    pub shape: [usize; 5],
    pub layout: Layout,
    /// Latent frames in front that only fill up a patch, and are dropped before decoding.
    pub padding: usize,
    /// Tokens of the clip, where the family's pipeline tells its scheduler, which may shift sigmas by them.
    pub seq_len: Option<usize>,
    /// What latents are kept in between steps.
    pub dtype: DType,
}

impl Canvas {
    /// Latent frames, those that fill up a patch included.
    pub fn frames(&self) -> usize {
        self.shape[self.layout.frames()]
    }

    /// What the VAE makes of the clip: (C, F, h, w), without frames that fill up a patch.
    pub fn encoded(&self) -> [usize; 4] {
        let [_, _, _, height, width] = self.shape;
        let channels = self.shape[self.layout.channels()];
        [channels, self.frames() - self.padding, height, width]
    }
}

/// Refuses frames that do not fall into patches of so many rows and columns, with the nearest that do.
pub fn whole_patches(height: usize, width: usize, [rows, columns]: [usize; 2]) -> anyhow::Result<()> {
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

/// Refuses a number of frames of which all but the first do not become latent frames, `time` each, with the nearest that do.
pub fn whole_frames(num_frames: usize, time: usize) -> anyhow::Result<()> {
    anyhow::ensure!(num_frames > 0, "a clip has at least one frame");
    anyhow::ensure!(
        num_frames % time == 1 % time,
        "{num_frames} frames must be a multiple of {time} and one more; the nearest is {}",
        (num_frames - 1 + time / 2) / time * time + 1
    );
    Ok(())
}

/// Everything that does not hold, at once.
pub fn all_hold<const N: usize>(checks: [anyhow::Result<()>; N]) -> anyhow::Result<()> {
    let wrong = checks.into_iter().filter_map(std::result::Result::err);
    let wrong: Vec<String> = wrong.map(|error| format!("{error:#}")).collect();
    anyhow::ensure!(wrong.is_empty(), wrong.join("; "));
    Ok(())
}

/// Whether a checkpoint starts from an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakesImage {
    Never,
    /// It was made for that alone.
    Always,
    /// Its first latent frame may be given clean.
    Either,
}

/// What an image says to the network.
#[derive(Debug, Clone)]
pub enum ImageCondition {
    /// Something beside the noisy latents.
    Beside(Beside),
    /// The first latent frame, clean, scaled and in the network's order: one frame of (B, ..., h, w). It is given at
    /// timestep 0 in place of a noisy one.
    First(Tensor),
}

/// What stands beside the noisy latents.
#[derive(Debug, Clone)]
pub struct Beside {
    /// Joined to the noisy latents by channel, in the network's order: as many frames, rows and columns.
    pub latents: Tensor,
    /// Of an image encoder, (B, tokens, width), for models that attend to it.
    pub tokens: Option<Tensor>,
    /// A second timestep (1), of models that have one.
    pub ofs: Option<Tensor>,
}

impl ImageCondition {
    /// Latent frames in front that are given clean.
    pub fn given_frames(&self) -> usize {
        match self {
            Self::Beside(_) => 0,
            Self::First(_) => 1,
        }
    }
}

/// What the network is told besides noisy latents and their timestep.
#[derive(Debug, Clone)]
pub struct Conditions {
    pub text: Text,
    pub image: Option<ImageCondition>,
    /// Frames a second of each of the B clips.
    pub frame_rates: Vec<f64>,
}

impl Conditions {
    /// What the network is given: noisy latents (B, ..., h, w), and timesteps (B) or (B, F). An image's part need only
    /// broadcast to B; one that is the first frame stands in the latents already.
    pub fn input(&self, latents: Tensor, timestep: Tensor, layout: Layout) -> Result<Input> {
        let mut input = Input {
            frame_rates: Some(self.frame_rates.clone()),
            ..Input::new(latents, timestep, self.text.clone())
        };
        if let Some(ImageCondition::Beside(image)) = &self.image {
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

/// Tensors that a record keeps, by name, and their shapes without the batch.
pub type Kept = Vec<(&'static str, Vec<usize>)>;

/// A loaded text encoder.
pub trait Conditioner {
    /// A prompt as the network takes it: (1, L, D), and its mask where the family has one.
    fn embed(&self, prompt: &str) -> anyhow::Result<Text>;

    /// Tokens at a prompt's end for which there is no room: [`embed`](Self::embed) leaves them out.
    fn lost_tokens(&self, _prompt: &str) -> anyhow::Result<usize> {
        Ok(0)
    }
}

/// A loaded encoder of clips.
pub trait ClipEncoder {
    /// The posterior of clips (B, 3, T, H, W) of -1..1: (B, C, F, h, w), whose samples `Family::latents` scales. Where that
    /// wants weights of the encoder, they are scaled already.
    fn encode(&self, clip: &Tensor) -> anyhow::Result<Posterior>;

    /// All that is kept of images (B, 3, H, W) of -1..1 which clips of `num_frames` frames start from; where the
    /// checkpoint always starts from an image, `Family::image_kept` names it. Nothing random is in it.
    /// Here it is the posterior of a clip of that one frame, which [`posterior_of`] makes of it again.
    fn encode_image(&self, image: &Tensor, _num_frames: usize) -> anyhow::Result<Vec<Tensor>> {
        let Posterior { mean, logvar } = self.encode(&image.unsqueeze(2)?)?; // (B, C, 1, h, w)
        Ok(vec![mean, logvar])
    }
}

/// The posterior that is kept of an image as its mean and its log-variance.
pub fn posterior_of(encoded: &[Tensor]) -> anyhow::Result<Posterior> {
    let [mean, logvar] = encoded else {
        anyhow::bail!("{} tensors for an image's mean and log-variance", encoded.len());
    };
    let (mean, logvar) = (mean.clone(), logvar.clone());
    Ok(Posterior { mean, logvar })
}

/// Size of the embedded prompts of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextShape {
    /// L
    pub tokens: usize,
    /// D
    pub width: usize,
    /// Whether padding is masked.
    pub masked: bool,
}

impl TextShape {
    /// What a caption's record keeps, in the order of `Text::tensors`.
    pub fn kept(&self) -> Kept {
        let mut kept = vec![("embeds", vec![self.tokens, self.width])];
        if self.masked {
            kept.push(("mask", vec![self.tokens]));
        }
        kept
    }
}

/// Takes decoded frames (1, 3, T, H, W) of about -1..1 as they come.
pub type Emit<'a> = &'a mut dyn FnMut(Tensor) -> anyhow::Result<()>;

/// A checkpoint of one family.
pub trait Family {
    /// Where it lies, and the variant of its weights that is wanted.
    fn directory(&self) -> &WeightFolder;

    /// The class that loads it in diffusers, to start from text or from an image.
    fn pipeline(&self, from_image: bool) -> &'static str;

    /// The folders in it that a conditioner is made of.
    fn conditioner_parts(&self) -> &'static [&'static str];

    /// The folders in it that a clip encoder is made of.
    fn encoder_parts(&self) -> &'static [&'static str];

    /// Loads the text encoder and its tokenizer.
    fn conditioner(&self) -> anyhow::Result<Box<dyn Conditioner>>;

    /// Loads the encoder half of the VAE, and an image encoder where the model listens to one. `tiling`: large frames in
    /// overlapping tiles, where these line up; `slicing`: the clips of a batch one by one.
    fn clip_encoder(&self, tiling: bool, slicing: bool) -> anyhow::Result<Box<dyn ClipEncoder>>;

    /// Size of every embedded prompt.
    fn text_shape(&self) -> TextShape;

    /// The checkpoint's own scheduler.
    fn scheduler(&self) -> anyhow::Result<Scheduler>;

    /// The transformer, with adapters where the planter has some.
    fn denoiser(&self, planter: Option<Arc<dyn Planter>>) -> anyhow::Result<Box<dyn Denoiser>>;

    /// Latents for a clip of this size.
    ///
    /// # Errors
    /// A size that the model cannot make, with the nearest that it can.
    fn canvas(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<Canvas>;

    /// Frames a second that clips have unless something else is asked for.
    fn frame_rate(&self) -> f64;

    fn takes_image(&self) -> TakesImage;

    /// A sample of a clip's posterior (B, C, F, h, w) as training mixes it with noise: scaled, with frames in front where
    /// a patch would not be full.
    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor>;

    /// What a clip's record keeps of its first frame, in the order of `ClipEncoder::encode_image`: only where the
    /// checkpoint always starts from an image.
    fn image_kept(&self, _canvas: &Canvas) -> Kept {
        Vec::new()
    }

    /// What encoded images, (B, ...) of each tensor, say to the network. Where posteriors are among them, their noise is
    /// drawn from `rng`; without one, their mean is taken.
    fn condition_on(
        &self,
        encoded: &[Tensor],
        canvas: &Canvas,
        rng: Option<&mut Rng>,
    ) -> anyhow::Result<ImageCondition>;

    /// Loads what decodes latents, and frees it.
    ///
    /// # Errors
    /// Why [`decode`](Self::decode) could not.
    fn check_decoder(&self) -> anyhow::Result<()>;

    /// Decodes the network's latents, padding dropped: loads, uses and frees the VAE. Noise that decoding wants comes
    /// from `rng`, behind all that denoising drew.
    fn decode(&self, latents: &Tensor, canvas: &Canvas, rng: &mut Rng, emit: Emit) -> anyhow::Result<()>;

    /// Prompts as the network takes them, (B, L, D): loads, uses and frees the text encoder.
    fn embed(&self, prompts: &[&str]) -> anyhow::Result<Text> {
        let conditioner = self.conditioner()?;
        for prompt in prompts {
            let lost = conditioner.lost_tokens(prompt)?;
            if lost > 0 {
                let room = self.text_shape().tokens;
                log::warn!("the prompt is cut to {room} tokens, and {lost} at its end are lost: {prompt:?}");
            }
        }
        let texts = prompts.iter().map(|prompt| conditioner.embed(prompt));
        Ok(Text::cat(&texts.collect::<anyhow::Result<Vec<_>>>()?)?)
    }

    /// Encodes an image (1, 3, H, W) of -1..1 to start from: loads, uses and frees the encoders.
    fn image_condition(&self, image: &Tensor, canvas: &Canvas, rng: &mut Rng) -> anyhow::Result<ImageCondition> {
        let encoded = self
            .clip_encoder(false, false)?
            .encode_image(image, canvas.num_frames)?;
        self.condition_on(&encoded, canvas, Some(rng))
    }

    /// Encodes a clip (1, 3, T, H, W) of -1..1 to the network's latents: loads, uses and frees the VAE.
    fn encode(&self, clip: &Tensor, canvas: &Canvas, rng: &mut Rng) -> anyhow::Result<Tensor> {
        let posterior = self.clip_encoder(false, false)?.encode(clip)?;
        let latents = self.latents(&posterior.draw(Some(rng))?)?;
        Ok(canvas.layout.swap(&latents)?)
    }
}
