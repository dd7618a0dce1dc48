//! What the sampler and the trainer ask of a family of models. One room answers these, and nothing else.
//!
//! Parts are loaded when they are asked for and freed when they are dropped: the text encoder is gone before the
//! transformer loads, the transformer before the VAE.
//!
//! Shapes: B samples, F latent frames, C latent channels, h and w latent rows and columns, L text tokens, D text width;
//! T, H and W a clip's frames, rows and columns.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::denoiser::{Denoiser, Input};
use crate::diffusion::objective::Objective;
use crate::diffusion::posterior::Posterior;
use crate::diffusion::schedulers::Scheduler;
use crate::nn::weights::Planter;
use crate::rng::Rng;

/// The size of what is sampled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canvas {
    /// Latents (B, F, C, h, w) as the network sees them.
    pub shape: [usize; 5],
    /// Latent frames in front that only fill up a patch, and are dropped before decoding.
    pub padding: usize,
}

/// What the network is told besides the text.
#[derive(Debug, Clone)]
pub struct ImageCondition {
    /// Joined to the noisy latents by channel, (B, F, C, h, w).
    pub latents: Tensor,
    /// A second timestep, of models that have one.
    pub ofs: Option<Tensor>,
}

/// A loaded text encoder.
pub trait Conditioner {
    /// A prompt as the network takes it, (1, L, D).
    fn embed(&self, prompt: &str) -> anyhow::Result<Tensor>;
}

/// A loaded encoder of clips.
pub trait ClipEncoder {
    /// The posterior of clips (B, 3, T, H, W) of -1..1: (B, C, F, h, w), not scaled.
    fn encode(&self, clip: &Tensor) -> anyhow::Result<Posterior>;
}

/// What a network is given: with an image, its latents stand behind the clip's among the channels.
pub fn input(latents: Tensor, timestep: Tensor, text: Tensor, image: Option<&ImageCondition>) -> Result<Input> {
    let latents = match image {
        None => latents,
        Some(image) => {
            let shape = [&latents.dims()[..2], &image.latents.dims()[2..]].concat();
            let image = image.latents.broadcast_as(shape)?.to_dtype(latents.dtype())?;
            Tensor::cat(&[latents, image], 2)? // (B, F, 2 C, h, w)
        }
    };
    Ok(Input {
        ofs: image.and_then(|image| image.ofs.clone()),
        ..Input::new(latents, timestep, text)
    })
}

/// Takes decoded frames (1, 3, T, H, W) of about -1..1 as they come.
pub type Emit<'a> = &'a mut dyn FnMut(Tensor) -> anyhow::Result<()>;

/// A checkpoint of one family.
pub trait Family {
    /// Where it lies.
    fn directory(&self) -> &Path;

    /// The class that loads it in diffusers.
    fn pipeline(&self) -> &'static str;

    /// The folders in it that a conditioner is made of.
    fn conditioner_parts(&self) -> &'static [&'static str];

    /// The folders in it that a clip encoder is made of.
    fn encoder_parts(&self) -> &'static [&'static str];

    /// Loads the text encoder and its tokenizer.
    fn conditioner(&self) -> anyhow::Result<Box<dyn Conditioner>>;

    /// Loads the encoder half of the VAE. `tiling`: large frames in overlapping tiles, where these line up; `slicing`:
    /// the clips of a batch one by one.
    fn clip_encoder(&self, tiling: bool, slicing: bool) -> anyhow::Result<Box<dyn ClipEncoder>>;

    /// Tokens and width of every embedded prompt: L and D.
    fn text_shape(&self) -> [usize; 2];

    /// Prompts as the network takes them, (B, L, D): loads, uses and frees the text encoder.
    fn embed(&self, prompts: &[&str]) -> anyhow::Result<Tensor> {
        let conditioner = self.conditioner()?;
        let embeddings = prompts
            .iter()
            .map(|prompt| conditioner.embed(prompt))
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Tensor::cat(&embeddings, 0)?)
    }

    /// The checkpoint's own scheduler.
    fn scheduler(&self) -> anyhow::Result<Scheduler>;

    /// The transformer, with adapters where the planter has some.
    fn denoiser(&self, planter: Option<Arc<dyn Planter>>) -> anyhow::Result<Box<dyn Denoiser>>;

    /// Latents for a clip of this size.
    ///
    /// # Errors
    /// A size that the model cannot make, with the nearest that it can.
    fn canvas(&self, num_frames: usize, height: usize, width: usize) -> anyhow::Result<Canvas>;

    /// Whether the checkpoint starts from an image.
    fn takes_image(&self) -> bool;

    /// What the network is trained to predict.
    fn objective(&self) -> anyhow::Result<Objective>;

    /// A sample of a clip's posterior (B, C, F, h, w) as training mixes it with noise: scaled, with frames in front where
    /// a patch would not be full.
    fn latents(&self, sample: &Tensor) -> anyhow::Result<Tensor>;

    /// Latents (B, C, F, h, w) in the order of the network, (B, F, C, h, w).
    fn arrange(&self, latents: &Tensor) -> anyhow::Result<Tensor>;

    /// What a sample of an image's posterior (B, C, 1, h, w) says to the network beside `frames` latent frames.
    fn condition_on(&self, sample: &Tensor, frames: usize) -> anyhow::Result<ImageCondition>;

    /// Encodes an image (1, 3, H, W) of -1..1 to start from, drawing its posterior noise from `rng`.
    fn image_condition(&self, image: &Tensor, canvas: &Canvas, rng: &mut Rng) -> anyhow::Result<ImageCondition>;

    /// Encodes a clip (1, 3, T, H, W) of -1..1 to the network's latents, drawing its posterior noise from `rng`.
    fn encode(&self, clip: &Tensor, rng: &mut Rng) -> anyhow::Result<Tensor>;

    /// Decodes the network's latents, padding dropped: loads, uses and frees the VAE.
    fn decode(&self, latents: &Tensor, canvas: &Canvas, emit: Emit) -> anyhow::Result<()>;
}
