//! Posterior of an autoencoder for a clip: a diagonal Gaussian over latents.

use candle_core::{DType, Result, Tensor};

use crate::rng::Rng;

/// N(mean, exp(logvar)), both (B, C, f, h, w): C latent channels, f latent frames of h x w. Not scaled.
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Mean (B, C, f, h, w).
    pub mean: Tensor,
    /// Log-variance, clamped to -30..20 as in `DiagonalGaussianDistribution`.
    pub logvar: Tensor,
}

impl Posterior {
    /// Splits concatenated mean and log-variance, (B, 2 C, f, h, w).
    pub fn new(moments: &Tensor) -> Result<Self> {
        let channels = moments.dim(1)? / 2;
        Ok(Self {
            mean: moments.narrow(1, 0, channels)?.contiguous()?,
            logvar: moments
                .narrow(1, channels, channels)?
                .clamp(-30f32, 20f32)?
                .contiguous()?,
        })
    }

    /// Returns mean + exp(logvar / 2) * noise, for standard normal noise of the mean's shape, rounded once to the
    /// mean's type.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        let [mean, logvar, noise] = [&self.mean, &self.logvar, noise].map(|tensor| tensor.to_dtype(DType::F32));
        let deviation = (logvar? * 0.5)?.exp()?;
        (mean? + (deviation * noise?)?)?.to_dtype(self.mean.dtype())
    }

    /// Draws a sample with noise from `rng`; without one, returns the mean.
    pub fn draw(&self, rng: Option<&mut Rng>) -> Result<Tensor> {
        let Some(rng) = rng else {
            return Ok(self.mean.clone());
        };
        let noise = rng.randn(self.mean.elem_count());
        self.sample(&Tensor::from_vec(noise, self.mean.shape(), self.mean.device())?)
    }

    /// Returns the most likely latents.
    pub fn mode(&self) -> Tensor {
        self.mean.clone()
    }
}
