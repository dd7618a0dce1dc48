//! Micro-batches: clips and captions from the cache, noise and timesteps from one generator.
//!
//! Micro-batch m of optimiser step s on rank r has the global index i = (s * accumulation + m) * world_size + r (all
//! from 0). It trains on the i-th batch of the order, and its generator is seeded with seed + i. From it are drawn, in
//! this order:
//! 1. the posterior noise, (B, C, f, h, w), if latents are sampled (`precompute.latents: sample`);
//! 2. the timesteps, (B);
//! 3. the noise, (B, C, f, h, w) in the VAE's own layout, including the frames that pad a patch; behind it its offset, (B, C),
//!    with `diffusion.noise_offset`;
//! 4. the posterior noise of the image, (B, C, 1, h, w), for models that start from one, if latents are sampled;
//! 5. `rand(B)`, with caption dropout: below its probability, the empty caption replaces the caption;
//! 6. `rand(B)`, with `train.first_frame_conditioning_p`: below it, the clip's first latent frame is given clean.
//!
//! So a run that is resumed, or split over machines, sees the same data.
//!
//! Shapes: B samples, C channels, f, h, w frames, rows and columns of latents, L text tokens, D the text's width.

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};

use crate::data::cache::{Clip, Encoded, Latents};
use crate::data::{Batch, Order};
use crate::diffusion::objective::{Noised, Objective, Timesteps};
use crate::diffusion::posterior::Posterior;
use crate::models::denoiser::{Input, Scalar, Scalars, TextEmbeds};
use crate::models::family::{Conditions, Family, ImageCondition, ImageMode, LatentSize, Layout};
use crate::rng::Rng;

/// Source of micro-batches.
pub struct MicroBatches<'a> {
    /// The checkpoint's family.
    pub family: &'a dyn Family,
    /// Encoded clips and captions.
    pub encoded: &'a Encoded,
    /// Forward process and target.
    pub objective: Objective,
    /// Order of the clips.
    pub order: Order,
    /// Use of the posterior: a draw or its mean.
    pub latents: Latents,
    /// Share of captions that are replaced by the empty one.
    pub caption_dropout: f64,
    /// Share of clips whose first latent frame is given clean.
    pub first_frame_conditioning_p: f64,
    /// Guidance scale that models are told which embed one.
    pub guidance_embedding: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Device of the tensors.
    pub device: Device,
}

/// Data of one pass through the network.
#[derive(Debug)]
pub struct MicroBatch {
    /// Input of the network.
    pub input: Input,
    /// Target of the network, in its own layout, f32.
    pub target: Tensor,
    /// Weight of each squared error, broadcast to the target's shape; None for equal weights.
    pub weight: Option<Tensor>,
    /// Timesteps of the samples.
    pub timesteps: Timesteps,
    /// Samples of the micro-batch.
    pub batch: Batch,
    /// Seed of its generator.
    pub seed: u64,
}

/// Loss, samples and timesteps of a micro-batch.
#[derive(Debug, Clone, PartialEq)]
pub struct MicroBatchStats {
    /// Mean loss of the micro-batch.
    pub loss: f64,
    /// Indices into the surveyed samples.
    pub samples: Vec<usize>,
    /// Timestep of each sample.
    pub timesteps: Vec<f64>,
}

impl MicroBatchStats {
    /// A micro-batch, with its loss where it was computed.
    pub fn read((loss, samples, timesteps): (Tensor, Vec<usize>, Vec<f64>)) -> candle_core::Result<Self> {
        Ok(Self {
            loss: f64::from(loss.to_scalar::<f32>()?),
            samples,
            timesteps,
        })
    }
}

impl MicroBatches<'_> {
    /// Returns the micro-batch with the global index `i`.
    ///
    /// # Errors
    /// Fails for a cache file that can no longer be read.
    pub fn micro_batch(&mut self, i: u64) -> anyhow::Result<MicroBatch> {
        let batch = self.order.batch_at(i).context("there is no clip to train on")?.clone();
        let seed = self.seed.wrapping_add(i);
        let mut rng = Rng::new(seed);
        let clips = batch.samples.iter().map(|sample| self.encoded.clip(*sample));
        let clips = clips.collect::<anyhow::Result<Vec<Clip>>>()?;
        let bucket = batch.bucket;
        let canvas = self.family.latent_size(bucket.frames, bucket.height, bucket.width)?;

        let sample = self.posterior(&clips)?.draw(self.drawing(&mut rng))?; // (B, C, f, h, w)
        let mut clean = self.family.latents(&sample)?; // (B, C, f, h, w), scaled
        let timesteps = self.objective.draw(clips.len(), canvas.seq_len, &mut rng)?;
        let noise = self.normal(clean.dims(), &mut rng)?;
        let noise = self.objective.offset(noise, &mut rng)?;
        let image = self.image(&clips, &canvas, &mut rng)?;
        let text = self.captions(&batch.samples, &mut rng)?;
        let given = match &image {
            Some(ImageCondition::First(first)) => {
                clean = with_first(first, &clean, canvas.layout)?;
                vec![canvas.frames() > 1; clips.len()]
            }
            _ => self.given(clips.len(), canvas.frames(), &mut rng),
        };
        let timesteps = timesteps.with_given(given);

        let Noised { noisy, target, weight } = self.objective.mix(&clean, &noise, &timesteps)?;
        let timestep = timesteps.tensor(canvas.frames(), &self.device)?;
        let frame_rates = batch.samples.iter().map(|sample| self.encoded.fps(*sample));
        let frame_rates = Scalars::of(Scalar::FrameRate, frame_rates.collect::<anyhow::Result<_>>()?);
        let guidance = Scalars::of(Scalar::Guidance, vec![self.guidance_embedding; clips.len()]);
        let conditions = Conditions {
            text,
            image,
            scalars: frame_rates.and(&guidance),
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

    /// Concatenates the posteriors of all clips on the device: (B, C, f, h, w).
    fn posterior(&self, clips: &[Clip]) -> candle_core::Result<Posterior> {
        Ok(Posterior {
            mean: batch(clips.iter().map(|clip| &clip.posterior.mean), &self.device)?,
            logvar: batch(clips.iter().map(|clip| &clip.posterior.logvar), &self.device)?,
        })
    }

    /// Returns the generator for posteriors, if they are sampled.
    fn drawing<'r>(&self, rng: &'r mut Rng) -> Option<&'r mut Rng> {
        (self.latents == Latents::Sample).then_some(rng)
    }

    /// Returns the image condition, for models that always take one.
    fn image(&self, clips: &[Clip], canvas: &LatentSize, rng: &mut Rng) -> anyhow::Result<Option<ImageCondition>> {
        if self.family.spec().image_mode != ImageMode::Always {
            return Ok(None);
        }
        let count = clips.first().map_or(0, |clip| clip.image.len());
        ensure!(
            count > 0,
            "the cache holds no images for this model; remove it and precompute again"
        );
        let part = |index: usize| batch(clips.iter().filter_map(|clip| clip.image.get(index)), &self.device);
        let encoded = (0..count).map(part).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Some(self.family.condition_on(&encoded, canvas, self.drawing(rng))?))
    }

    fn captions(&self, samples: &[usize], rng: &mut Rng) -> anyhow::Result<TextEmbeds> {
        let dropped = bernoulli(self.caption_dropout, samples.len(), rng);
        let one = |(sample, dropped): (&usize, bool)| match dropped {
            true => self.encoded.empty_caption(),
            false => self.encoded.caption(*sample),
        };
        let captions = samples.iter().zip(dropped).map(one);
        let captions = captions.collect::<anyhow::Result<Vec<_>>>()?;
        let text = TextEmbeds::stack(&captions, &self.family.spec().text())?; // (B, L, D)
        // In main memory: lengths that are read from a GPU would make the host wait for it.
        Ok(text.trimmed()?.to_device(&self.device)?)
    }

    /// Draws the samples whose first latent frame is given. A clip of that frame alone would leave nothing to learn.
    fn given(&self, batch: usize, frames: usize, rng: &mut Rng) -> Vec<bool> {
        let given = bernoulli(self.first_frame_conditioning_p, batch, rng);
        given.into_iter().map(|given| given && frames > 1).collect()
    }

    /// Draws standard normal numbers, f32.
    fn normal(&self, shape: &[usize], rng: &mut Rng) -> anyhow::Result<Tensor> {
        let numbers = rng.randn(shape.iter().product());
        Ok(Tensor::from_vec(numbers, shape, &self.device)?)
    }
}

/// Replaces the first latent frames of clips (B, C, f, h, w) by those of an image, which are in the network's order.
fn with_first(first: &Tensor, clean: &Tensor, layout: Layout) -> candle_core::Result<Tensor> {
    let first = layout.swap(first)?; // (B, C, 1, h, w)
    let count = first.dim(2)?;
    Tensor::cat(&[&first, &clean.narrow(2, count, clean.dim(2)? - count)?], 2)
}

/// Draws for each sample of a batch whether it belongs to this share; draws nothing if the share is 0.
fn bernoulli(share: f64, batch: usize, rng: &mut Rng) -> Vec<bool> {
    match share > 0.0 {
        true => rng.rand(batch).into_iter().map(|u| f64::from(u) < share).collect(),
        false => vec![false; batch],
    }
}

/// Concatenates B of (1, ...) -> (B, ...), f32 on the device.
fn batch<'a>(parts: impl Iterator<Item = &'a Tensor>, device: &Device) -> candle_core::Result<Tensor> {
    let parts: Vec<&Tensor> = parts.collect();
    Tensor::cat(&parts, 0)?.to_device(device)?.to_dtype(DType::F32)
}
