//! Sampling: from noise to latents under a prompt. The only sampler: validation uses it, too.
//!
//! With guidance scale g above 1, the prediction is `v(negative) + g (v(prompt) - v(negative))` (arXiv:2207.12598). Noise
//! is drawn as the family's diffusers pipeline draws it from `torch.Generator("cpu").manual_seed(seed)`: an image's or a
//! clip's posterior first, then the noise to start from, then what the scheduler asks for step by step.
//!
//! Shapes: as in `models::family`.

use std::sync::Arc;

use anyhow::{bail, ensure};
use candle_core::{DType, Tensor};

use crate::diffusion::guidance;
use crate::diffusion::schedulers::{Run, Scheduler};
use crate::models::Family;
use crate::models::denoiser::Denoiser;
use crate::models::family::{self, Canvas, ImageCondition};
use crate::nn::weights::Planter;
use crate::rng::Rng;

mod frames;

pub use frames::{pictures, read, write};

/// Numbers in the latents beyond which the two passes of guidance run one after the other, for memory's sake.
const ONE_BATCH: usize = 1 << 20;

/// What to make.
#[derive(Debug, Clone)]
pub struct Request {
    pub prompt: String,
    pub negative_prompt: String,
    pub num_frames: usize,
    pub height: usize,
    pub width: usize,
    /// Denoising steps.
    pub steps: usize,
    pub guidance_scale: f64,
    /// Guidance that grows along the run (`use_dynamic_cfg`).
    pub dynamic_guidance: bool,
    pub seed: u64,
    pub start: Start,
    /// Latents (1, F, C, h, w) to start from instead of drawn noise.
    pub latents: Option<Tensor>,
}

/// What a clip starts from besides noise.
#[derive(Debug, Clone)]
pub enum Start {
    Text,
    /// An image (1, 3, H, W) of -1..1.
    Image(Tensor),
    /// A clip (1, 3, F, H, W) of -1..1, and how much of it is made anew (0..1).
    Clip(Tensor, f64),
}

/// Denoised latents, and what decoding must know of them.
#[derive(Debug, Clone)]
pub struct Sampled {
    pub latents: Tensor,
    pub canvas: Canvas,
}

/// A request ready to be denoised: only the transformer is still missing.
#[derive(Debug)]
pub struct Prepared {
    scheduler: Scheduler,
    canvas: Canvas,
    conditions: Conditions,
    /// What the first step starts from.
    latents: Tensor,
    rng: Rng,
    request: Request,
}

/// What the network is told at every step.
#[derive(Debug)]
struct Conditions {
    /// (1, L, D), or (2, L, D) with the negative prompt first where there is guidance.
    text: Tensor,
    image: Option<ImageCondition>,
}

/// Told the steps done, and of how many; an error ends the sampling.
pub type Progress<'a> = &'a dyn Fn(usize, usize) -> anyhow::Result<()>;

impl Request {
    /// The prompts that guide this request, in the order in which their embeddings are joined to a batch.
    pub fn prompts(&self) -> Vec<&str> {
        match self.guidance_scale > 1.0 {
            true => vec![&self.negative_prompt, &self.prompt],
            false => vec![&self.prompt],
        }
    }
}

/// All of it but decoding, part after part of the checkpoint loaded, used and freed.
///
/// # Errors
/// A request that the checkpoint cannot fulfil; files of the checkpoint that are missing or broken.
pub fn sample(
    family: &dyn Family,
    request: Request,
    planter: Option<Arc<dyn Planter>>,
    progress: Progress,
) -> anyhow::Result<Sampled> {
    check(family, &request)?;
    let text = family.embed(&request.prompts())?;
    let prepared = Prepared::new(family, request, text)?;
    let denoiser = family.denoiser(planter)?;
    prepared.denoise(&*denoiser, progress)
}

impl Prepared {
    /// With the embedded prompts of the request, (1 or 2, L, D), in their order. An image or a clip to start from is
    /// encoded here.
    pub fn new(family: &dyn Family, request: Request, text: Tensor) -> anyhow::Result<Self> {
        let canvas = check(family, &request)?;
        let scheduler = family.scheduler()?;
        let mut rng = Rng::new(request.seed);
        let (latents, image) = begin(family, &request, &canvas, &scheduler, &mut rng, &text)?;
        Ok(Self {
            scheduler,
            canvas,
            conditions: Conditions { text, image },
            latents,
            rng,
            request,
        })
    }

    /// Runs the denoiser, step by step.
    pub fn denoise(mut self, denoiser: &dyn Denoiser, progress: Progress) -> anyhow::Result<Sampled> {
        let mut run = start(&self.scheduler, &self.request)?;
        let mut latents = self.latents;
        let steps = run.timesteps().len();
        progress(0, steps)?;
        while let Some(timestep) = run.timestep() {
            let scale = match self.request.dynamic_guidance {
                true => guidance::dynamic_scale(self.request.guidance_scale, run.num_steps(), timestep),
                false => self.request.guidance_scale,
            };
            let input = self.scheduler.scale_model_input(&latents, timestep);
            let output = predict(denoiser, &self.conditions, &input, timestep, scale)?;
            let mut noise = None;
            for _ in 0..run.noise_draws()? {
                noise = Some(draw(&mut self.rng, latents.dims(), &latents)?);
            }
            latents = run
                .step(&output, &latents, noise.as_ref())?
                .sample
                .to_dtype(self.conditions.text.dtype())?;
            progress(steps - run.remaining(), steps)?;
        }
        Ok(Sampled {
            latents,
            canvas: self.canvas,
        })
    }
}

/// The scheduler's run over all steps, or over those that a clip is made anew in.
fn start<'a>(scheduler: &'a Scheduler, request: &Request) -> anyhow::Result<Run<'a>> {
    match &request.start {
        Start::Clip(_, strength) => scheduler.start_from(request.steps, *strength, None),
        Start::Text | Start::Image(_) => scheduler.start(request.steps, None),
    }
}

/// The latents of the first step, and what an image says.
fn begin(
    family: &dyn Family,
    request: &Request,
    canvas: &Canvas,
    scheduler: &Scheduler,
    rng: &mut Rng,
    like: &Tensor,
) -> anyhow::Result<(Tensor, Option<ImageCondition>)> {
    let image = match &request.start {
        Start::Image(image) => Some(family.image_condition(image, canvas, rng)?),
        Start::Text | Start::Clip(..) => None,
    };
    if let Some(latents) = &request.latents {
        return Ok((latents.to_device(like.device())?.to_dtype(like.dtype())?, image));
    }
    if let Start::Clip(clip, _) = &request.start {
        let clean = family.encode(clip, rng)?;
        let noise = draw(rng, clean.dims(), like)?;
        let noisy = start(scheduler, request)?.add_noise(&clean, &noise)?;
        return Ok((noisy.to_dtype(like.dtype())?, image));
    }
    let noise = draw(rng, &canvas.shape, like)?;
    Ok(((noise * scheduler.init_noise_sigma())?, image))
}

/// Standard normal numbers of the type and on the device of `like`.
fn draw(rng: &mut Rng, shape: &[usize], like: &Tensor) -> anyhow::Result<Tensor> {
    let numbers = rng.randn(shape.iter().product());
    Ok(Tensor::from_vec(numbers, shape, like.device())?.to_dtype(like.dtype())?)
}

/// The guided prediction (1, F, C, h, w), in f32.
fn predict(
    denoiser: &dyn Denoiser,
    conditions: &Conditions,
    latents: &Tensor,
    timestep: f64,
    scale: f64,
) -> anyhow::Result<Tensor> {
    let passes = conditions.text.dim(0)?;
    let run = |text: Tensor| -> anyhow::Result<Tensor> {
        let batch = text.dim(0)?;
        let latents = latents.repeat((batch, 1, 1, 1, 1))?;
        let timestep = Tensor::from_vec(vec![timestep as f32; batch], batch, latents.device())?;
        let input = family::input(latents, timestep, text, conditions.image.as_ref())?;
        Ok(denoiser.forward(&input)?.to_dtype(DType::F32)?)
    };
    if passes == 1 {
        return run(conditions.text.clone());
    }
    let (negative, positive) = if latents.elem_count() <= ONE_BATCH {
        let both = run(conditions.text.clone())?; // (2, F, C, h, w)
        (both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?)
    } else {
        (
            run(conditions.text.narrow(0, 0, 1)?)?,
            run(conditions.text.narrow(0, 1, 1)?)?,
        )
    };
    Ok((&negative + ((positive - &negative)? * scale)?)?)
}

/// Refuses what the checkpoint cannot make; the canvas of what it can.
fn check(family: &dyn Family, request: &Request) -> anyhow::Result<Canvas> {
    let canvas = family.canvas(request.num_frames, request.height, request.width)?;
    match (&request.start, family.takes_image()) {
        (Start::Image(_), false) => bail!("this checkpoint makes clips from text alone; leave out the image"),
        (Start::Text | Start::Clip(..), true) => bail!("this checkpoint starts from an image; give it one"),
        _ => {}
    }
    if let Start::Clip(..) = request.start {
        ensure!(
            canvas.padding == 0,
            "a clip of {} frames leaves a patch half full; take {} more or fewer",
            request.num_frames,
            canvas.padding
        );
    }
    if let Some(latents) = &request.latents {
        ensure!(
            latents.dims() == canvas.shape,
            "the latents are {:?}, and a clip of this size has {:?} (batch, frames, channels, rows, columns)",
            latents.dims(),
            canvas.shape
        );
    }
    Ok(canvas)
}
