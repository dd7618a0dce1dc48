//! One micro-batch: clips and captions from the cache, noise and timesteps from one generator.
//!
//! Micro-batch m of optimiser step s on rank r has the global index i = (s * accumulation + m) * world_size + r (all from
//! 0). It trains on the i-th batch of the order, and its generator is seeded with seed + i. From it are drawn, in this order:
//! 1. the posterior noise, (B, C, f, h, w), where latents are sampled (`precompute.latents: sample`);
//! 2. the timesteps, (B);
//! 3. the noise, (B, C, f, h, w) in the VAE's own layout, with the frames that fill up a patch;
//! 4. the posterior noise of the image, (B, C, 1, h, w), for models that start from one and where latents are sampled;
//! 5. `rand(B)`, where there is caption dropout: below it, the caption gives way to the empty one;
//! 6. `rand(B)`, where first frames are given (`train.first_frame`): below it, that of the clip is.
//!
//! So a run that is resumed, or split over machines, sees what it would have seen.
//!
//! Shapes: B samples, C channels, f, h, w frames, rows and columns of latents, L text tokens, D the text's width.

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};

use crate::data::cache::{Clip, Encoded, Latents};
use crate::data::{Batch, Order};
use crate::diffusion::objective::{Noised, Objective, Timesteps};
use crate::diffusion::posterior::Posterior;
use crate::models::denoiser::{Input, Text};
use crate::models::family::{Canvas, Conditions, Family, ImageCondition, TakesImage};
use crate::rng::Rng;

/// Where micro-batches come from.
pub struct Source<'a> {
    pub family: &'a dyn Family,
    pub encoded: &'a Encoded,
    pub objective: Objective,
    pub order: Order,
    pub latents: Latents,
    /// Share of captions that give way to the empty one.
    pub caption_dropout: f64,
    /// Share of clips whose first latent frame is given clean.
    pub first_frame: f64,
    pub seed: u64,
    pub device: Device,
}

/// What one pass through the network needs.
#[derive(Debug)]
pub struct MicroBatch {
    pub input: Input,
    /// What the network should answer, in its own layout, f32.
    pub target: Tensor,
    /// What each squared error counts, in a shape that broadcasts to the target's; none where all count alike.
    pub weight: Option<Tensor>,
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
        let bucket = batch.bucket;
        let canvas = self.family.canvas(bucket.frames, bucket.height, bucket.width)?;

        let sample = self.posterior(&clips)?.draw(self.drawing(&mut rng))?; // (B, C, f, h, w)
        let clean = self.family.latents(&sample)?; // (B, C, f, h, w), scaled
        let timesteps = self.objective.draw(clips.len(), canvas.seq_len, &mut rng)?;
        let noise = self.normal(clean.dims(), &mut rng)?;
        let image = self.image(&clips, &canvas, &mut rng)?;
        let text = self.captions(&batch.samples, &mut rng)?;
        let timesteps = timesteps.with_given(self.given(clips.len(), canvas.frames(), &mut rng));

        let Noised { noisy, target, weight } = self.objective.mix(&clean, &noise, &timesteps)?;
        let timestep = timesteps.tensor(canvas.frames(), &self.device)?;
        let frame_rates = batch.samples.iter().map(|sample| self.encoded.fps(*sample));
        let conditions = Conditions {
            text,
            image,
            frame_rates: frame_rates.collect::<anyhow::Result<_>>()?,
        };
        let layout = canvas.layout;
        Ok(MicroBatch {
            input: conditions.input(layout.swap(&noisy)?, timestep, layout)?,
            target: layout.swap(&target)?,
            weight: weight.map(|weight| layout.swap(&weight)).transpose()?,
            timesteps,
            batch,
            seed,
        })
    }

    /// Of all clips, one below the other, on the device: (B, C, f, h, w).
    fn posterior(&self, clips: &[Clip]) -> candle_core::Result<Posterior> {
        Ok(Posterior {
            mean: join(clips.iter().map(|clip| &clip.posterior.mean), &self.device)?,
            logvar: join(clips.iter().map(|clip| &clip.posterior.logvar), &self.device)?,
        })
    }

    /// What posteriors are drawn from, where they are.
    fn drawing<'r>(&self, rng: &'r mut Rng) -> Option<&'r mut Rng> {
        (self.latents == Latents::Sample).then_some(rng)
    }

    /// What the images that clips start from say, where the model always takes them.
    fn image(&self, clips: &[Clip], canvas: &Canvas, rng: &mut Rng) -> anyhow::Result<Option<ImageCondition>> {
        if self.family.takes_image() != TakesImage::Always {
            return Ok(None);
        }
        let count = clips.first().map_or(0, |clip| clip.image.len());
        ensure!(
            count > 0,
            "the cache holds no images for this model; remove it and precompute again"
        );
        let part = |index: usize| join(clips.iter().filter_map(|clip| clip.image.get(index)), &self.device);
        let encoded = (0..count).map(part).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Some(self.family.condition_on(&encoded, canvas, self.drawing(rng))?))
    }

    fn captions(&self, samples: &[usize], rng: &mut Rng) -> anyhow::Result<Text> {
        let dropped = below(self.caption_dropout, samples.len(), rng);
        let one = |(sample, dropped): (&usize, bool)| match dropped {
            true => self.encoded.empty_caption(),
            false => self.encoded.caption(*sample),
        };
        let captions = samples.iter().zip(dropped).map(one);
        let captions = captions.collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Text::stack(&captions)?.to_device(&self.device)?) // (B, L, D)
    }

    /// Which samples have their first latent frame given. With that alone there would be nothing to learn.
    fn given(&self, batch: usize, frames: usize, rng: &mut Rng) -> Vec<bool> {
        let given = below(self.first_frame, batch, rng);
        given.into_iter().map(|given| given && frames > 1).collect()
    }

    /// Standard normal numbers, f32.
    fn normal(&self, shape: &[usize], rng: &mut Rng) -> anyhow::Result<Tensor> {
        let numbers = rng.randn(shape.iter().product());
        Ok(Tensor::from_vec(numbers, shape, &self.device)?)
    }
}

/// For each of a batch, whether it falls to this share; where the share is 0, nothing is drawn.
fn below(share: f64, batch: usize, rng: &mut Rng) -> Vec<bool> {
    match share > 0.0 {
        true => rng.rand(batch).into_iter().map(|u| f64::from(u) < share).collect(),
        false => vec![false; batch],
    }
}

/// B of (1, ...) -> (B, ...), f32 on the device.
fn join<'a>(parts: impl Iterator<Item = &'a Tensor>, device: &Device) -> candle_core::Result<Tensor> {
    let parts: Vec<&Tensor> = parts.collect();
    Tensor::cat(&parts, 0)?.to_device(device)?.to_dtype(DType::F32)
}
