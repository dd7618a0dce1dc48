//! `AutoencoderKLLTXVideo`: clips to latents of 1/8 the frames and 1/32 the size, and back.  arXiv:2501.00103
//!
//! A clip of 8 k + 1 frames becomes k + 1 latent frames. Samples of a batch are processed one by one, which needs the
//! least memory.
//!
//! Shapes: B samples, C colours, F frames, H rows, W columns, L channels of latents; f, h, w the latents' size.

mod coder;
mod config;
mod resnet;

use candle_core::{Error, Result, Tensor, bail};

pub use crate::models::latent_norm::LatentNorm;
pub use crate::models::vae::Parts;
pub use config::{Config, DownBlockType, DownsampleType};

use resnet::State;

use crate::models::autoencoder::{Autoencoder, Emitted, collected};
use crate::models::vae::per_sample;
use crate::rng::Rng;

/// The autoencoder, or half of it.
pub type Vae = Autoencoder<Config>;

impl Vae {
    /// Decodes latents (B, L, f, h, w), not normalised, as from the encoder, to (B, C, F, H, W) of about -1..1.
    ///
    /// A decoder with `timestep_conditioning` needs the noise level of each sample, (B) in 0..1; others take none. One
    /// with `decoder_inject_noise` draws from `rng`, in torch's order; every sample gets the same numbers.
    pub fn decode(&self, latents: &Tensor, timesteps: Option<&Tensor>, rng: &mut Rng) -> Result<Tensor> {
        self.decoder_of(latents)?;
        let batch = latents.dim(0)?;
        match (self.config.timestep_conditioning, timesteps.map(Tensor::dims)) {
            (true, None) => bail!("this VAE's decoder needs a timestep"),
            (false, Some(_)) => bail!("this VAE's decoder takes no timestep"),
            (true, Some(dims)) if dims != [batch] => bail!("{batch} timesteps were expected, not {dims:?}"),
            _ => {}
        }
        let start = rng.clone();
        per_sample(latents, |i, latents| {
            let timestep = timesteps.map(|timesteps| timesteps.narrow(0, i, 1)?.to_device(self.device()));
            *rng = start.clone();
            collected(|emit| self.decode_frames(latents, timestep.transpose()?, rng, emit))
        })
    }

    /// Same as [`decode`](Self::decode) of one sample, emitting frames as they come.
    pub fn decode_frames<E: From<Error>>(
        &self,
        latents: &Tensor,
        timestep: Option<Tensor>,
        rng: &mut Rng,
        emit: impl FnMut(Tensor) -> Emitted<E>,
    ) -> Emitted<E> {
        let mut state = State {
            timestep,
            rng: rng.clone(),
            ..State::default()
        };
        self.decode_from(&mut state, latents, emit)?;
        *rng = state.rng;
        Ok(())
    }
}
