//! Conditions of a sample besides its timestep: text, an image to start from, and numbers.
//!
//! Shapes: B samples, F latent frames, h and w latent rows and columns.

use candle_core::{Result, Tensor};

use super::denoiser::{Input, Scalars};
use super::latent_size::Layout;
use super::text_embeds::TextEmbeds;

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
    /// Numbers that the network embeds with it.
    pub scalars: Scalars,
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
    /// Frames per second of each of the B clips, and other numbers.
    pub scalars: Scalars,
}

impl Conditions {
    /// Network input from noisy latents (B, ..., h, w), and timesteps (B) or (B, F). An image condition need only
    /// broadcast to B; a clean first frame is part of the latents already.
    pub fn input(&self, latents: Tensor, timestep: Tensor, layout: Layout) -> Result<Input> {
        let mut input = Input {
            scalars: self.scalars.clone(),
            ..Input::new(latents, timestep, self.text.clone())
        };
        if let Some(ImageCondition::Concat(image)) = &self.image {
            let batch = input.latents.dim(0)?;
            let for_all = |part: &Tensor| part.broadcast_as([&[batch], &part.dims()[1..]].concat());
            let latents = for_all(&image.latents)?.to_dtype(input.latents.dtype())?;
            input.latents = Tensor::cat(&[&input.latents, &latents], layout.channels())?;
            input.image = image.tokens.as_ref().map(for_all).transpose()?;
            input.scalars = input.scalars.and(&image.scalars);
        }
        Ok(input)
    }
}
