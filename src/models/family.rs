//! What the sampler, and later the trainer, ask of a family of models. One room answers these, and nothing else.
//!
//! Parts are loaded when they are asked for and freed when their result is there: the text encoder is gone before the
//! transformer loads, the transformer before the VAE.
//!
//! Shapes: B samples, F latent frames, C latent channels, h and w latent rows and columns, L text tokens, D text width.

use std::sync::Arc;

use candle_core::Tensor;

use super::denoiser::Denoiser;
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

/// Takes decoded frames (1, 3, F, H, W) of about -1..1 as they come.
pub type Emit<'a> = &'a mut dyn FnMut(Tensor) -> anyhow::Result<()>;

/// A checkpoint of one family.
pub trait Family {
    /// Prompts as the network takes them, (B, L, D): loads, uses and frees the text encoder.
    fn embed(&self, prompts: &[&str]) -> anyhow::Result<Tensor>;

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

    /// Encodes an image (1, 3, H, W) of -1..1 to start from, drawing its posterior noise from `rng`.
    fn image_condition(&self, image: &Tensor, canvas: &Canvas, rng: &mut Rng) -> anyhow::Result<ImageCondition>;

    /// Encodes a clip (1, 3, F, H, W) of -1..1 to the network's latents, drawing its posterior noise from `rng`.
    fn encode(&self, clip: &Tensor, rng: &mut Rng) -> anyhow::Result<Tensor>;

    /// Decodes the network's latents, padding dropped: loads, uses and frees the VAE.
    fn decode(&self, latents: &Tensor, canvas: &Canvas, emit: Emit) -> anyhow::Result<()>;
}
