//! Sampling: from noise to latents under a prompt. The only sampler: validation uses it, too.
//!
//! With guidance scale g above 1, the prediction is `v(negative) + g (v(prompt) - v(negative))` (arXiv:2207.12598). Noise
//! is drawn as the family's diffusers pipeline draws it from `torch.Generator("cpu").manual_seed(seed)`: an image's or a
//! clip's posterior first, then the noise to start from, then what the scheduler asks for step by step.
//!
//! Shapes: as in `models::family`.

use std::sync::Arc;

use anyhow::{bail, ensure};
use candle_core::{DType, Device, Tensor};

use crate::diffusion::guidance;
use crate::diffusion::schedulers::{Run, Scheduler};
use crate::models::Family;
use crate::models::denoiser::{Denoiser, Text};
use crate::models::family::{Canvas, Conditions, ImageCondition, Layout, TakesImage};
use crate::nn::weights::Planter;
use crate::ops::tape::forget;
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
    /// Frames a second, for models whose positions count seconds.
    pub fps: f64,
    pub start: Start,
    /// Latents (1, ..., h, w) in the network's order to start from instead of drawn noise.
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
    /// Behind all that denoising drew: some decoders draw, too.
    pub rng: Rng,
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
    pub fn new(family: &dyn Family, request: Request, text: Text) -> anyhow::Result<Self> {
        let canvas = check(family, &request)?;
        let scheduler = family.scheduler()?;
        let mut rng = Rng::new(request.seed);
        let image = match &request.start {
            Start::Image(image) => Some(family.image_condition(image, &canvas, &mut rng)?),
            Start::Text | Start::Clip(..) => None,
        };
        let run = start(&scheduler, &request, &canvas)?;
        let device = text.hidden.device();
        let mut latents = begin(family, &request, &canvas, &run, &mut rng, device)?;
        if let Some(ImageCondition::First(first)) = &image {
            latents = with_first(first, &latents, &canvas)?;
        }
        Ok(Self {
            conditions: Conditions {
                frame_rates: vec![request.fps; text.count()?],
                text,
                image,
            },
            scheduler,
            canvas,
            latents,
            rng,
            request,
        })
    }

    /// Runs the denoiser, step by step. Frames that are given clean stay as they are; the scheduler sees the others.
    pub fn denoise(mut self, denoiser: &dyn Denoiser, progress: Progress) -> anyhow::Result<Sampled> {
        let mut run = start(&self.scheduler, &self.request, &self.canvas)?;
        let given = self.conditions.image.as_ref().map_or(0, ImageCondition::given_frames);
        let axis = self.canvas.layout.frames();
        let free = |latents: &Tensor| match given {
            0 => Ok(latents.clone()),
            _ => latents.narrow(axis, given, latents.dim(axis)? - given),
        };
        let mut latents = self.latents.clone();
        let steps = run.timesteps().len();
        progress(0, steps)?;
        while let Some(timestep) = run.timestep() {
            let scale = match self.request.dynamic_guidance {
                true => guidance::dynamic_scale(self.request.guidance_scale, run.num_steps(), timestep),
                false => self.request.guidance_scale,
            };
            let input = self.scheduler.scale_model_input(&latents, timestep);
            let output = self.predict(denoiser, &input, timestep, scale)?;
            let (output, sample) = (free(&output)?, free(&latents)?);
            let mut noise = None;
            for _ in 0..run.noise_draws()? {
                noise = Some(draw(&mut self.rng, sample.dims(), sample.dtype(), sample.device())?);
            }
            let stepped = run.step(&output, &sample, noise.as_ref())?.sample;
            let stepped = stepped.to_dtype(self.canvas.dtype)?;
            latents = match given {
                0 => stepped,
                _ => Tensor::cat(&[&latents.narrow(axis, 0, given)?, &stepped], axis)?,
            };
            progress(steps - run.remaining(), steps)?;
        }
        Ok(Sampled {
            latents,
            canvas: self.canvas,
            rng: self.rng,
        })
    }

    /// The guided prediction for latents (1, ..., h, w), in f32.
    fn predict(&self, denoiser: &dyn Denoiser, latents: &Tensor, timestep: f64, scale: f64) -> anyhow::Result<Tensor> {
        let run = |conditions: &Conditions| -> anyhow::Result<Tensor> {
            let batch = conditions.text.count()?;
            let latents = latents.to_dtype(conditions.text.hidden.dtype())?;
            let latents = latents.repeat((batch, 1, 1, 1, 1))?;
            let timestep = self.timestep(timestep, batch, latents.device())?;
            let input = conditions.input(latents, timestep, self.canvas.layout)?;
            // Adapters in training learn nothing here: no step leaves a graph behind.
            let output = forget(|| denoiser.forward(&input))?.detach();
            Ok(output.to_dtype(DType::F32)?)
        };
        if self.conditions.text.count()? == 1 {
            return run(&self.conditions);
        }
        let (negative, positive) = if latents.elem_count() <= ONE_BATCH {
            let both = run(&self.conditions)?; // (2, ..., h, w)
            (both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?)
        } else {
            let alone = |place| -> anyhow::Result<Conditions> {
                Ok(Conditions {
                    text: self.conditions.text.narrow(place, 1)?,
                    image: self.conditions.image.clone(),
                    frame_rates: vec![self.request.fps],
                })
            };
            (run(&alone(0)?)?, run(&alone(1)?)?)
        };
        Ok((&negative + ((positive - &negative)? * scale)?)?)
    }

    /// As the network takes it: (B), or (B, F) with 0 for frames that are given.
    fn timestep(&self, timestep: f64, batch: usize, device: &Device) -> candle_core::Result<Tensor> {
        let given = self.conditions.image.as_ref().map_or(0, ImageCondition::given_frames);
        if given == 0 {
            return Tensor::from_vec(vec![timestep as f32; batch], batch, device);
        }
        let frames = self.canvas.frames();
        let of_frame = |frame| if frame < given { 0.0 } else { timestep as f32 };
        let one: Vec<f32> = (0..frames).map(of_frame).collect();
        Tensor::from_vec(one.repeat(batch), (batch, frames), device)
    }
}

/// The scheduler's run over all steps, or over those that a clip is made anew in.
fn start<'a>(scheduler: &'a Scheduler, request: &Request, canvas: &Canvas) -> anyhow::Result<Run<'a>> {
    match &request.start {
        Start::Clip(_, strength) => scheduler.start_from(request.steps, *strength, canvas.seq_len),
        Start::Text | Start::Image(_) => scheduler.start(request.steps, canvas.seq_len),
    }
}

/// The latents of the first step.
fn begin(
    family: &dyn Family,
    request: &Request,
    canvas: &Canvas,
    run: &Run,
    rng: &mut Rng,
    device: &Device,
) -> anyhow::Result<Tensor> {
    if let Some(latents) = &request.latents {
        return Ok(latents.to_device(device)?.to_dtype(canvas.dtype)?);
    }
    if let Start::Clip(clip, _) = &request.start {
        let clean = family.encode(clip, canvas, rng)?.to_dtype(canvas.dtype)?;
        let noise = draw(rng, clean.dims(), canvas.dtype, device)?;
        return Ok(run.add_noise(&clean, &noise)?);
    }
    draw(rng, &canvas.shape, canvas.dtype, device)
}

/// The latents with their first frames replaced by clean ones.
fn with_first(first: &Tensor, latents: &Tensor, canvas: &Canvas) -> anyhow::Result<Tensor> {
    let axis = canvas.layout.frames();
    let given = first.dim(axis)?;
    let rest = latents.narrow(axis, given, canvas.frames() - given)?;
    Ok(Tensor::cat(&[&first.to_dtype(canvas.dtype)?, &rest], axis)?)
}

/// Standard normal numbers.
fn draw(rng: &mut Rng, shape: &[usize], dtype: DType, device: &Device) -> anyhow::Result<Tensor> {
    let numbers = rng.randn(shape.iter().product());
    Ok(Tensor::from_vec(numbers, shape, device)?.to_dtype(dtype)?)
}

/// Refuses what the checkpoint cannot make; the canvas of what it can.
fn check(family: &dyn Family, request: &Request) -> anyhow::Result<Canvas> {
    let refused = refused(family, request);
    let said: Vec<String> = refused.into_iter().map(|refused| refused.why).collect();
    ensure!(said.is_empty(), said.join("\n"));
    family.canvas(request.num_frames, request.height, request.width)
}

/// Something asked for that a checkpoint cannot make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub what: What,
    pub why: String,
}

/// The side of a request that cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Frames, height and width.
    Size,
    /// The image or clip to start from.
    Start,
    /// Denoising steps.
    Steps,
    Latents,
}

/// Everything in a request that the checkpoint cannot make. Nothing is loaded.
pub fn refused(family: &dyn Family, request: &Request) -> Vec<Refused> {
    let canvas = family.canvas(request.num_frames, request.height, request.width);
    let mut refused = Vec::new();
    let mut note = |what, done: anyhow::Result<()>| {
        let why = done.err().map(|error| format!("{error:#}"));
        refused.extend(why.map(|why| Refused { what, why }));
    };
    note(
        What::Start,
        check_start(family.takes_image(), request, canvas.as_ref().ok()),
    );
    if let Ok(canvas) = &canvas {
        note(What::Latents, check_latents(request, canvas));
        // A scheduler that cannot be read is told of where it is asked for.
        if let Ok(scheduler) = family.scheduler() {
            note(What::Steps, start(&scheduler, request, canvas).map(drop));
        }
    }
    note(What::Size, canvas.map(drop));
    refused
}

fn check_start(takes_image: TakesImage, request: &Request, canvas: Option<&Canvas>) -> anyhow::Result<()> {
    match (&request.start, takes_image) {
        (Start::Image(_), TakesImage::Never) => {
            bail!("this checkpoint makes clips from text alone; leave out the image")
        }
        (Start::Text | Start::Clip(..), TakesImage::Always) => {
            bail!("this checkpoint starts from an image; give it one")
        }
        _ => {}
    }
    if let (Start::Clip(..), Some(canvas)) = (&request.start, canvas) {
        ensure!(
            canvas.padding == 0,
            "a clip of {} frames leaves a patch half full; take {} more or fewer",
            request.num_frames,
            canvas.padding
        );
    }
    Ok(())
}

fn check_latents(request: &Request, canvas: &Canvas) -> anyhow::Result<()> {
    if let Some(latents) = &request.latents {
        ensure!(
            latents.dims() == canvas.shape,
            "the latents are {:?}, and a clip of this size has {:?} ({})",
            latents.dims(),
            canvas.shape,
            match canvas.layout {
                Layout::FramesFirst => "batch, frames, channels, rows, columns",
                Layout::ChannelsFirst => "batch, channels, frames, rows, columns",
            }
        );
    }
    Ok(())
}
