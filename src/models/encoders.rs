//! Loaded encoders and decoders of a checkpoint: prompts to embeddings, clips to latents and back.
//!
//! Shapes: B samples, F latent frames, C latent channels, h and w latent rows and columns, L text tokens, D text width;
//! T, H and W a clip's frames, rows and columns.

use candle_core::Tensor;

use super::latent_size::LatentSize;
use super::text_embeds::TextEmbeds;
use crate::diffusion::posterior::Posterior;
use crate::rng::Rng;

/// A loaded text encoder.
pub trait TextEncoder {
    /// Embeds a prompt: (1, L, D), and its mask if the family has one. An encoder that sees a picture (1, 3, H, W) of -1..1
    /// sees a black one if there is none; others take no notice of it.
    fn embed(&self, prompt: &str, picture: Option<&Tensor>) -> anyhow::Result<TextEmbeds>;

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

/// Callback for decoded frames (1, 3, T, H, W) of about -1..1 as they come.
pub type Emit<'a> = &'a mut dyn FnMut(Tensor) -> anyhow::Result<()>;

/// A loaded video decoder.
pub trait VideoDecoder {
    /// Decodes the network's latents (1, ..., h, w), without padding. Noise for decoding comes from `rng`, after all
    /// draws of denoising.
    fn decode(&self, latents: &Tensor, size: &LatentSize, rng: &mut Rng, emit: Emit) -> anyhow::Result<()>;
}
