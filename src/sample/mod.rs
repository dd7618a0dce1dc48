//! Sampling: from noise to latents under a prompt. The only sampler; validation uses it, too.
//!
//! With classifier-free guidance of a scale g above 1, the prediction is `v(negative) + g (v(prompt) - v(negative))`
//! (arXiv:2207.12598).
//! Noise is drawn as the family's diffusers pipeline draws it from `torch.Generator("cpu").manual_seed(seed)`: an
//! image's or a clip's posterior first, then the initial noise, then the scheduler's noise for each step.
//!
//! Shapes: as in `models::family`.

use std::time::Instant;

use anyhow::Context;
use candle_core::{DType, Device, Tensor};

use crate::diffusion::guidance::{self, Join, NeededPasses};
use crate::diffusion::schedulers::{Scheduler, StepSpacing};
use crate::models::Family;
use crate::models::denoiser::{Denoiser, TextEmbeds};
use crate::models::family::{Conditions, ImageCondition, LatentSize};
use crate::nn::Load;
use crate::ops::tape::no_grad;
use crate::rng::Rng;

mod all;
mod frames;
mod request;
mod start_encoder;
pub mod step_cache;

pub use all::{Embedded, sample, sample_all};
pub use frames::{decode, pictures, read, write};
pub use request::{Request, RequestSide, Start, UnsupportedRequest, refused};

use request::{check, start};
use start_encoder::StartEncoder;
use step_cache::{Pass, Step, StepCache, Work};

/// Latent elements beyond which the two passes of guidance run one after the other, to save memory.
const ONE_BATCH: usize = 1 << 20;

/// Denoised latents, with what decoding needs.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// Latents (1, ..., h, w) in the network's layout.
    pub latents: Tensor,
    /// Size and layout of the latents.
    pub size: LatentSize,
    /// Generator after the draws of denoising: some decoders draw, too.
    pub rng: Rng,
    /// Steps, in order.
    pub steps: Vec<StepRecord>,
    /// Measured ratios, under `step_cache::Config::CalibrateMagCache`.
    pub ratios: Option<Vec<f32>>,
}

/// A step, with what became of its passes: None for one that did not run.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct StepRecord {
    /// Timestep as the network takes it.
    pub timestep: f64,
    /// Pass with the prompt.
    pub positive: Option<Work>,
    /// Pass with the negative prompt.
    pub negative: Option<Work>,
    /// Seconds until the next step.
    pub seconds: f64,
}

/// A request ready for the transformer.
#[derive(Debug)]
pub struct Prepared {
    scheduler: Scheduler,
    spacing: StepSpacing,
    size: LatentSize,
    /// Passes of a step: one, or under the negative prompt and then under the prompt.
    passes: Vec<(Pass, Conditions)>,
    image: Option<ImageCondition>,
    /// Latents of the first step.
    latents: Tensor,
    /// Type of the latents between steps.
    dtype: DType,
    rng: Rng,
    request: Request,
}

/// Callback with the completed and the total steps; an error stops the sampling.
pub type Progress<'a> = &'a dyn Fn(usize, usize) -> anyhow::Result<()>;

impl Prepared {
    /// Prepares a request with its embedded prompts, (1 or 2, L, D), in their order. An image or a clip to start from
    /// is encoded here.
    pub fn new(family: &dyn Family, load: &Load, request: Request, text: TextEmbeds) -> anyhow::Result<Self> {
        Self::with_encoder(&mut StartEncoder::new(family, load), request, text)
    }

    /// Same, with an encoder that others use as well.
    fn with_encoder(encoder: &mut StartEncoder, request: Request, text: TextEmbeds) -> anyhow::Result<Self> {
        let (family, load) = (encoder.family, encoder.load);
        let size = check(family, &request)?;
        let scheduler = request::scheduler(family, &request)?;
        let mut rng = Rng::new(request.seed);
        let image = match &request.start {
            Start::Image(image) => Some(family.condition_on_image(encoder.loaded()?, image, &size, &mut rng)?),
            Start::Text | Start::Clip(..) => None,
        };
        let spacing = family.spec().step_spacing;
        let run = start((&scheduler, spacing), &request, &size)?;
        let dtype = family.spec().latent_dtype(load);
        let mut latents = match (&request.latents, &request.start) {
            (Some(latents), _) => run.first_noise(&latents.to_device(&load.device)?.to_dtype(dtype)?)?,
            (None, Start::Clip(clip, _)) => {
                let clean = family
                    .encode(encoder.loaded()?, clip, &size, &mut rng)?
                    .to_dtype(dtype)?;
                let noise = draw(&mut rng, clean.dims(), dtype, &load.device)?;
                run.add_noise(&clean, &noise)?
            }
            (None, _) => run.first_noise(&draw(&mut rng, &size.shape, dtype, &load.device)?)?,
        };
        if let Some(image) = &image {
            latents = family.start_from_image(latents, image)?;
        }
        if let Some(ImageCondition::First(first)) = &image {
            latents = with_first(&first.to_dtype(dtype)?, &latents, &size)?;
        }
        Ok(Self {
            passes: passes(&request, &text, image.as_ref(), latents.elem_count())?,
            image,
            scheduler,
            spacing,
            size,
            latents,
            dtype,
            rng,
            request,
        })
    }

    /// Runs the denoiser, step by step. Given clean frames stay as they are; the scheduler sees only the others.
    pub fn denoise(mut self, denoiser: &dyn Denoiser, progress: Progress) -> anyhow::Result<Sampled> {
        let mut run = start((&self.scheduler, self.spacing), &self.request, &self.size)?;
        let given = self.image.as_ref().map_or(0, ImageCondition::conditioned_frames);
        let axis = self.size.layout.frames();
        let free = |latents: &Tensor| match given {
            0 => Ok(latents.clone()),
            _ => latents.narrow(axis, given, latents.dim(axis)? - given),
        };
        let mut latents = self.latents.clone();
        let steps = run.timesteps().len();
        let planned = run.noise_timesteps().into_iter().enumerate().map(|(i, timestep)| Step {
            timestep,
            passes: self.request.guidance.passes(i, steps),
        });
        let mut cache = self.request.cache.start(&planned.collect::<Vec<_>>())?;
        let mut join = Join::new(self.request.guidance.rule);
        let mut records = Vec::new();
        progress(0, steps)?;
        while let Some(timestep) = run.timestep() {
            let began = Instant::now();
            let scale = self.request.guidance.cfg_scale();
            let scale = match self.request.dynamic_guidance {
                true => guidance::dynamic_scale(scale, run.num_steps(), timestep),
                false => scale,
            };
            let input = run.model_input(&latents)?;
            let mut record = StepRecord {
                timestep,
                positive: None,
                negative: None,
                seconds: 0.0,
            };
            let output = match self.request.guidance.passes(records.len(), steps) {
                NeededPasses::None => input.zeros_like()?.to_dtype(DType::F32)?,
                NeededPasses::Prompt => self.run_pass((denoiser, &mut *cache), &input, &mut record, Pass::Positive)?,
                NeededPasses::Both => {
                    let [negative, positive] = self.run_both((denoiser, &mut *cache), &input, &mut record)?;
                    join.join(&negative, &positive, scale)?
                }
            };
            let (output, sample) = (free(&output)?, free(&latents)?);
            let mut noise = None;
            for _ in 0..run.noise_draws()? {
                noise = Some(draw(&mut self.rng, sample.dims(), sample.dtype(), sample.device())?);
            }
            let stepped = run.step(&output, &sample, noise.as_ref())?.sample;
            let stepped = stepped.to_dtype(self.dtype)?;
            latents = match given {
                0 => stepped,
                _ => Tensor::cat(&[&latents.narrow(axis, 0, given)?, &stepped], axis)?,
            };
            record.seconds = began.elapsed().as_secs_f64();
            records.push(record);
            progress(steps - run.remaining(), steps)?;
        }
        Ok(Sampled {
            latents,
            size: self.size,
            rng: self.rng,
            steps: records,
            ratios: cache.ratios().map(<[f32]>::to_vec),
        })
    }

    /// Returns the predictions with the negative prompt and with the prompt, (1, ..., h, w) each, in f32.
    fn run_both(
        &self,
        (denoiser, cache): (&dyn Denoiser, &mut dyn StepCache),
        latents: &Tensor,
        record: &mut StepRecord,
    ) -> anyhow::Result<[Tensor; 2]> {
        if latents.elem_count() <= ONE_BATCH && !cache.separates_passes() {
            let both = self.run_pass((denoiser, cache), latents, record, Pass::Both)?; // (2, ..., h, w)
            return Ok([both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?]);
        }
        let positive = self.run_pass((denoiser, &mut *cache), latents, record, Pass::Positive)?;
        let negative = self.run_pass((denoiser, cache), latents, record, Pass::Negative)?;
        Ok([negative, positive])
    }

    /// Returns the prediction of a pass for latents (1, ..., h, w), in f32.
    fn run_pass(
        &self,
        (denoiser, cache): (&dyn Denoiser, &mut dyn StepCache),
        latents: &Tensor,
        record: &mut StepRecord,
        pass: Pass,
    ) -> anyhow::Result<Tensor> {
        let conditions = self.conditions_of(pass)?;
        let batch = conditions.text.count()?;
        let latents = latents.to_dtype(conditions.text.hidden.dtype())?;
        let latents = latents.repeat((batch, 1, 1, 1, 1))?;
        let timestep = self.timestep(record.timestep, batch, latents.device())?;
        let input = conditions.input(latents, timestep, self.size.layout)?;
        // Adapters in training get no gradient here: no step leaves a graph.
        let (output, work) = no_grad(|| cache.predict(denoiser, &input, pass))?;
        if pass != Pass::Positive {
            record.negative = Some(work);
        }
        if pass != Pass::Negative {
            record.positive = Some(work);
        }
        Ok(output.detach().to_dtype(DType::F32)?)
    }

    /// Returns the conditions of a pass.
    fn conditions_of(&self, pass: Pass) -> anyhow::Result<&Conditions> {
        let mut passes = self.passes.iter();
        let found = passes.find(|(of, _)| *of == pass).map(|(_, conditions)| conditions);
        found.with_context(|| format!("no prompts were embedded for the pass {pass:?}"))
    }

    /// Returns the timestep as the network takes it: (B), or (B, F) with 0 for given frames.
    fn timestep(&self, timestep: f64, batch: usize, device: &Device) -> candle_core::Result<Tensor> {
        let given = self.image.as_ref().map_or(0, ImageCondition::conditioned_frames);
        if given == 0 {
            return Tensor::from_vec(vec![timestep as f32; batch], batch, device);
        }
        let frames = self.size.frames();
        let of_frame = |frame| if frame < given { 0.0 } else { timestep as f32 };
        let one: Vec<f32> = (0..frames).map(of_frame).collect();
        Tensor::from_vec(one.repeat(batch), (batch, frames), device)
    }
}

/// Returns the passes that steps may have, each with its prompts without padding: here, so that no step reads lengths from a GPU.
/// The prompt is the last of those that were embedded.
fn passes(
    request: &Request,
    text: &TextEmbeds,
    image: Option<&ImageCondition>,
    numbers: usize,
) -> anyhow::Result<Vec<(Pass, Conditions)>> {
    let parts: &[_] = match text.count()? {
        1 => &[(Pass::Positive, 0, 1)],
        _ if numbers <= ONE_BATCH => &[(Pass::Negative, 0, 1), (Pass::Positive, 1, 1), (Pass::Both, 0, 2)],
        _ => &[(Pass::Negative, 0, 1), (Pass::Positive, 1, 1)],
    };
    let conditions = parts.iter().map(|(pass, first, count)| {
        let conditions = Conditions {
            text: text.narrow(*first, *count)?.trimmed()?,
            image: image.cloned(),
            scalars: request.scalars(*count),
        };
        Ok((*pass, conditions))
    });
    conditions.collect()
}

/// Replaces the first latent frames by clean ones.
fn with_first(first: &Tensor, latents: &Tensor, size: &LatentSize) -> anyhow::Result<Tensor> {
    let axis = size.layout.frames();
    let given = first.dim(axis)?;
    let rest = latents.narrow(axis, given, size.frames() - given)?;
    Ok(Tensor::cat(&[first, &rest], axis)?)
}

/// Draws standard normal numbers.
fn draw(rng: &mut Rng, shape: &[usize], dtype: DType, device: &Device) -> anyhow::Result<Tensor> {
    let numbers = rng.randn(shape.iter().product());
    Ok(Tensor::from_vec(numbers, shape, device)?.to_dtype(dtype)?)
}
