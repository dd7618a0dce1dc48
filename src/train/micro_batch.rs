//! One micro-batch: clips and captions from the cache, noise and timesteps from one generator.
//!
//! Micro-batch m of optimiser step s has the global index i = s * accumulation + m (both from 0). It trains on the i-th
//! batch of the order, and its generator is seeded with seed + i. From it are drawn, in this order:
//! 1. the posterior noise, (B, C, f, h, w), where latents are sampled (`precompute.latents: sample`);
//! 2. the timesteps, (B);
//! 3. the noise, (B, C, f, h, w) in the VAE's own layout, with the frames that fill up a patch;
//! 4. the posterior noise of the image, (B, C, 1, h, w), for models that start from one and where latents are sampled;
//! 5. `rand(B)`, where there is caption dropout: below it, the caption gives way to the empty one.
//!
//! So a run that is resumed, or split over machines, sees what it would have seen.
//!
//! Shapes: B samples, C channels, f, h, w frames, rows and columns of latents, L text tokens, D the text's width.

use anyhow::Context;
use candle_core::{DType, Device, Tensor};

use crate::data::cache::{Clip, Encoded, Latents};
use crate::data::{Batch, Order};
use crate::diffusion::objective::{Noised, Objective, Timesteps};
use crate::diffusion::posterior::Posterior;
use crate::models::denoiser::Input;
use crate::models::family::{self, Family};
use crate::rng::Rng;

/// Where micro-batches come from.
pub struct Source<'a> {
    pub family: &'a dyn Family,
    pub encoded: &'a Encoded,
    pub objective: Objective,
    pub order: Order,
    pub latents: Latents,
    pub caption_dropout: f64,
    pub seed: u64,
    pub device: Device,
}

/// What one pass through the network needs.
#[derive(Debug)]
pub struct MicroBatch {
    pub input: Input,
    /// What the network should answer, in its own layout, f32.
    pub target: Tensor,
    pub timesteps: Timesteps,
    pub batch: Batch,
    /// What its generator was seeded with.
    pub seed: u64,
}

impl Source<'_> {
    /// The micro-batch with the global index `i`.
    ///
    /// # Errors
    /// A cache file that can no longer be read.
    pub fn micro_batch(&mut self, i: u64) -> anyhow::Result<MicroBatch> {
        let batch = self.order.batch_at(i).context("there is no clip to train on")?.clone();
        let seed = self.seed.wrapping_add(i);
        let mut rng = Rng::new(seed);
        let clips = batch.samples.iter().map(|sample| self.encoded.clip(*sample));
        let clips = clips.collect::<anyhow::Result<Vec<Clip>>>()?;

        let video = clips.iter().map(|clip| &clip.posterior).collect::<Vec<_>>();
        let sample = self.draw_latents(&video, &mut rng)?; // (B, C, f, h, w)
        let clean = self.family.latents(&sample)?; // (B, C, f, h, w), scaled
        let timesteps = self.objective.draw(batch.samples.len(), &mut rng);
        let noise = self.normal(clean.dims(), &mut rng)?;
        let Noised { noisy, target } = self.objective.mix(&clean, &noise, &timesteps)?;
        let image = self.image(&clips, &mut rng)?;
        let text = self.captions(&batch.samples, &mut rng)?; // (B, L, D)

        let noisy = self.family.arrange(&noisy)?;
        let image = image.map(|image| self.family.condition_on(&image, clean.dim(2)?));
        let timestep = timesteps.tensor(&self.device)?;
        Ok(MicroBatch {
            input: family::input(noisy, timestep, text, image.transpose()?.as_ref())?,
            target: self.family.arrange(&target)?,
            timesteps,
            batch,
            seed,
        })
    }

    /// The posteriors' samples or means, one below the other: (B, C, f, h, w), not scaled.
    fn draw_latents(&self, posteriors: &[&Posterior], rng: &mut Rng) -> anyhow::Result<Tensor> {
        let mean = join(posteriors.iter().map(|posterior| &posterior.mean), &self.device)?;
        match self.latents {
            Latents::Mode => Ok(mean),
            Latents::Sample => {
                let logvar = join(posteriors.iter().map(|posterior| &posterior.logvar), &self.device)?;
                let noise = self.normal(mean.dims(), rng)?;
                Ok(Posterior { mean, logvar }.sample(&noise)?)
            }
        }
    }

    /// The latents of the images that clips start from, (B, C, 1, h, w), where the model takes them.
    fn image(&self, clips: &[Clip], rng: &mut Rng) -> anyhow::Result<Option<Tensor>> {
        if !self.family.takes_image() {
            return Ok(None);
        }
        let images = clips.iter().map(|clip| clip.image.as_ref());
        let images = images
            .collect::<Option<Vec<_>>>()
            .context("the cache holds no images for this model; remove it and precompute again")?;
        Ok(Some(self.draw_latents(&images, rng)?))
    }

    fn captions(&self, samples: &[usize], rng: &mut Rng) -> anyhow::Result<Tensor> {
        let dropped: Vec<bool> = match self.caption_dropout > 0.0 {
            true => rng
                .rand(samples.len())
                .iter()
                .map(|u| f64::from(*u) < self.caption_dropout)
                .collect(),
            false => vec![false; samples.len()],
        };
        let one = |(sample, dropped): (&usize, bool)| match dropped {
            true => self.encoded.empty_caption(),
            false => self.encoded.caption(*sample),
        };
        let captions = samples.iter().zip(dropped).map(one);
        let captions = captions.collect::<anyhow::Result<Vec<Tensor>>>()?; // B of (L, D)
        Ok(Tensor::stack(&captions, 0)?.to_device(&self.device)?)
    }

    /// Standard normal numbers, f32.
    fn normal(&self, shape: &[usize], rng: &mut Rng) -> anyhow::Result<Tensor> {
        let numbers = rng.randn(shape.iter().product());
        Ok(Tensor::from_vec(numbers, shape, &self.device)?)
    }
}

/// B of (1, C, f, h, w) -> (B, C, f, h, w), f32 on the device.
fn join<'a>(parts: impl Iterator<Item = &'a Tensor>, device: &Device) -> candle_core::Result<Tensor> {
    let parts: Vec<&Tensor> = parts.collect();
    Tensor::cat(&parts, 0)?.to_device(device)?.to_dtype(DType::F32)
}
