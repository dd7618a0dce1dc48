//! Sampling: from noise to latents under a prompt. The only sampler; validation uses it, too.
//!
//! With a guidance scale g above 1, the prediction is `v(negative) + g (v(prompt) - v(negative))` (arXiv:2207.12598).
//! Noise is drawn as the family's diffusers pipeline draws it from `torch.Generator("cpu").manual_seed(seed)`: an
//! image's or a clip's posterior first, then the initial noise, then the scheduler's noise for each step.
//!
//! Shapes: as in `models::family`.

use std::sync::Arc;

use anyhow::{bail, ensure};
use candle_core::{DType, Device, Tensor};

use crate::diffusion::guidance;
use crate::diffusion::schedulers::{Run, Scheduler};
use crate::models::Family;
use crate::models::denoiser::{Denoiser, TextEmbeds};
use crate::models::family::{Conditions, ImageCondition, ImageMode, LatentSize, Layout};
use crate::nn::adapter::Adapt;
use crate::ops::tape::no_grad;
use crate::rng::Rng;

mod frames;

pub use frames::{pictures, read, write};

/// Latent elements beyond which the two passes of guidance run one after the other, to save memory.
const ONE_BATCH: usize = 1 << 20;

/// Parameters of a clip.
#[derive(Debug, Clone)]
pub struct Request {
    /// Description of the clip.
    pub prompt: String,
    /// Description of what to avoid, used with guidance.
    pub negative_prompt: String,
    /// Frames of the clip.
    pub num_frames: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Weight of classifier-free guidance; no guidance at 1 and below.
    pub guidance_scale: f64,
    /// True for guidance that grows during the run (`use_dynamic_cfg`).
    pub dynamic_guidance: bool,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Frames per second, for models whose positions count seconds.
    pub fps: f64,
    /// Image or clip to start from.
    pub start: Start,
    /// Initial latents (1, ..., h, w) in the network's order, which replace drawn noise.
    pub latents: Option<Tensor>,
}

/// Start of a clip, besides noise.
#[derive(Debug, Clone)]
pub enum Start {
    /// Noise alone.
    Text,
    /// An image (1, 3, H, W) of -1..1.
    Image(Tensor),
    /// A clip (1, 3, F, H, W) of -1..1, and the strength of the change (0..1).
    Clip(Tensor, f64),
}

/// Denoised latents, with what decoding needs.
#[derive(Debug, Clone)]
pub struct Sampled {
    /// Latents (1, ..., h, w) in the network's layout.
    pub latents: Tensor,
    /// Size and layout of the latents.
    pub canvas: LatentSize,
    /// Generator after the draws of denoising: some decoders draw, too.
    pub rng: Rng,
}

/// A request ready for the transformer.
#[derive(Debug)]
pub struct Prepared {
    scheduler: Scheduler,
    canvas: LatentSize,
    conditions: Conditions,
    /// Latents of the first step.
    latents: Tensor,
    rng: Rng,
    request: Request,
}

/// Callback with the completed and the total steps; an error stops the sampling.
pub type Progress<'a> = &'a dyn Fn(usize, usize) -> anyhow::Result<()>;

impl Request {
    /// Returns the prompts that guide this request, in the order of their embeddings in a batch.
    pub fn prompts(&self) -> Vec<&str> {
        match self.guidance_scale > 1.0 {
            true => vec![&self.negative_prompt, &self.prompt],
            false => vec![&self.prompt],
        }
    }
}

/// Runs text encoding and denoising; each model is dropped before the next loads.
///
/// # Errors
/// Fails for a request that the checkpoint cannot fulfil, and for missing or broken files of the checkpoint.
pub fn sample(
    family: &dyn Family,
    request: Request,
    adapt: Option<Arc<dyn Adapt>>,
    progress: Progress,
) -> anyhow::Result<Sampled> {
    check(family, &request)?;
    let text = family.embed(&request.prompts())?;
    let prepared = Prepared::new(family, request, text)?;
    let denoiser = family.denoiser(adapt)?;
    prepared.denoise(&*denoiser, progress)
}

impl Prepared {
    /// Prepares a request with its embedded prompts, (1 or 2, L, D), in their order. An image or a clip to start from
    /// is encoded here.
    pub fn new(family: &dyn Family, request: Request, text: TextEmbeds) -> anyhow::Result<Self> {
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

    /// Runs the denoiser, step by step. Given clean frames stay as they are; the scheduler sees only the others.
    pub fn denoise(mut self, denoiser: &dyn Denoiser, progress: Progress) -> anyhow::Result<Sampled> {
        let mut run = start(&self.scheduler, &self.request, &self.canvas)?;
        let given = self
            .conditions
            .image
            .as_ref()
            .map_or(0, ImageCondition::conditioned_frames);
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

    /// Returns the guided prediction for latents (1, ..., h, w), in f32.
    fn predict(&self, denoiser: &dyn Denoiser, latents: &Tensor, timestep: f64, scale: f64) -> anyhow::Result<Tensor> {
        let run = |conditions: &Conditions| -> anyhow::Result<Tensor> {
            let batch = conditions.text.count()?;
            let latents = latents.to_dtype(conditions.text.hidden.dtype())?;
            let latents = latents.repeat((batch, 1, 1, 1, 1))?;
            let timestep = self.timestep(timestep, batch, latents.device())?;
            let input = conditions.input(latents, timestep, self.canvas.layout)?;
            // Adapters in training get no gradient here: no step leaves a graph.
            let output = no_grad(|| denoiser.forward(&input))?.detach();
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

    /// Returns the timestep as the network takes it: (B), or (B, F) with 0 for given frames.
    fn timestep(&self, timestep: f64, batch: usize, device: &Device) -> candle_core::Result<Tensor> {
        let given = self
            .conditions
            .image
            .as_ref()
            .map_or(0, ImageCondition::conditioned_frames);
        if given == 0 {
            return Tensor::from_vec(vec![timestep as f32; batch], batch, device);
        }
        let frames = self.canvas.frames();
        let of_frame = |frame| if frame < given { 0.0 } else { timestep as f32 };
        let one: Vec<f32> = (0..frames).map(of_frame).collect();
        Tensor::from_vec(one.repeat(batch), (batch, frames), device)
    }
}

/// Starts the scheduler's run over all steps, or over those that change a clip.
fn start<'a>(scheduler: &'a Scheduler, request: &Request, canvas: &LatentSize) -> anyhow::Result<Run<'a>> {
    match &request.start {
        Start::Clip(_, strength) => scheduler.start_from(request.steps, *strength, canvas.seq_len),
        Start::Text | Start::Image(_) => scheduler.start(request.steps, canvas.seq_len),
    }
}

/// Returns the latents of the first step.
fn begin(
    family: &dyn Family,
    request: &Request,
    canvas: &LatentSize,
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

/// Replaces the first latent frames by clean ones.
fn with_first(first: &Tensor, latents: &Tensor, canvas: &LatentSize) -> anyhow::Result<Tensor> {
    let axis = canvas.layout.frames();
    let given = first.dim(axis)?;
    let rest = latents.narrow(axis, given, canvas.frames() - given)?;
    Ok(Tensor::cat(&[&first.to_dtype(canvas.dtype)?, &rest], axis)?)
}

/// Draws standard normal numbers.
fn draw(rng: &mut Rng, shape: &[usize], dtype: DType, device: &Device) -> anyhow::Result<Tensor> {
    let numbers = rng.randn(shape.iter().product());
    Ok(Tensor::from_vec(numbers, shape, device)?.to_dtype(dtype)?)
}

/// Rejects requests that the checkpoint cannot fulfil; returns the latent size of others.
fn check(family: &dyn Family, request: &Request) -> anyhow::Result<LatentSize> {
    let refused = refused(family, request);
    let said: Vec<String> = refused.into_iter().map(|refused| refused.why).collect();
    ensure!(said.is_empty(), said.join("\n"));
    family.latent_size(request.num_frames, request.height, request.width)
}

/// Part of a request that a checkpoint cannot fulfil.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedRequest {
    /// Part of the request.
    pub what: RequestSide,
    /// Reason, and what would be possible.
    pub why: String,
}

/// Aspects of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestSide {
    /// Frames, height and width.
    Size,
    /// The image or clip to start from.
    Start,
    /// Denoising steps.
    Steps,
    /// Initial latents that replace noise.
    Latents,
}

/// Returns every part of a request that the checkpoint cannot fulfil. Loads nothing.
pub fn refused(family: &dyn Family, request: &Request) -> Vec<UnsupportedRequest> {
    let canvas = family.latent_size(request.num_frames, request.height, request.width);
    let mut refused = Vec::new();
    let mut note = |what, done: anyhow::Result<()>| {
        let why = done.err().map(|error| format!("{error:#}"));
        refused.extend(why.map(|why| UnsupportedRequest { what, why }));
    };
    note(
        RequestSide::Start,
        check_start(family.image_mode(), request, canvas.as_ref().ok()),
    );
    if let Ok(canvas) = &canvas {
        note(RequestSide::Latents, check_latents(request, canvas));
        // An unreadable scheduler is reported where it is needed.
        if let Ok(scheduler) = family.scheduler() {
            note(RequestSide::Steps, start(&scheduler, request, canvas).map(drop));
        }
    }
    note(RequestSide::Size, canvas.map(drop));
    refused
}

fn check_start(takes_image: ImageMode, request: &Request, canvas: Option<&LatentSize>) -> anyhow::Result<()> {
    match (&request.start, takes_image) {
        (Start::Image(_), ImageMode::Never) => {
            bail!("this checkpoint makes clips from text alone; leave out the image")
        }
        (Start::Text | Start::Clip(..), ImageMode::Always) => {
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

fn check_latents(request: &Request, canvas: &LatentSize) -> anyhow::Result<()> {
    if let Some(latents) = &request.latents {
        ensure!(
            latents.dims() == canvas.shape,
            "the latents are {:?}, but a clip of this size has {:?} ({})",
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
