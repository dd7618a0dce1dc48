//! What an autoencoder says about a clip: a diagonal Gaussian over latents.

use candle_core::{DType, Result, Tensor};

use crate::rng::Rng;

/// N(mean, exp(logvar)), both (B, C, f, h, w): C latent channels, f latent frames of h x w. Not scaled.
#[derive(Debug, Clone)]
pub struct Posterior {
    pub mean: Tensor,
    /// Kept within -30..20, as `DiagonalGaussianDistribution` does.
    pub logvar: Tensor,
}

impl Posterior {
    /// From mean and log-variance one behind the other, (B, 2 C, f, h, w).
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

    /// mean + exp(logvar / 2) * noise, for standard normal noise of the mean's shape, rounded once to the mean's type.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        let [mean, logvar, noise] = [&self.mean, &self.logvar, noise].map(|tensor| tensor.to_dtype(DType::F32));
        let deviation = (logvar? * 0.5)?.exp()?;
        (mean? + (deviation * noise?)?)?.to_dtype(self.mean.dtype())
    }

    /// A sample whose noise is drawn from `rng`; without one, the mean.
    pub fn draw(&self, rng: Option<&mut Rng>) -> Result<Tensor> {
        let Some(rng) = rng else {
            return Ok(self.mean.clone());
        };
        let noise = rng.randn(self.mean.elem_count());
        self.sample(&Tensor::from_vec(noise, self.mean.shape(), self.mean.device())?)
    }

    /// The likeliest latents.
    pub fn mode(&self) -> Tensor {
        self.mean.clone()
    }
}
