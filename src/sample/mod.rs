//! Sampling: from noise to latents under a prompt. The only sampler; validation uses it, too.
//!
//! With classifier-free guidance of a scale g above 1, the prediction is `v(negative) + g (v(prompt) - v(negative))`
//! (arXiv:2207.12598).
//! Noise is drawn as the family's diffusers pipeline draws it from `torch.Generator("cpu").manual_seed(seed)`: an
//! image's or a clip's posterior first, then the initial noise, then the scheduler's noise for each step.
//!
//! Shapes: as in `models::family`.

use anyhow::{bail, ensure};
use candle_core::{DType, Device, Tensor};

use crate::diffusion::guidance::{self, Guidance};
use crate::diffusion::schedulers::{Run, Scheduler, StepSpacing};
use crate::models::Family;
use crate::models::denoiser::{Denoiser, Scalar, Scalars, TextEmbeds};
use crate::models::family::{Conditions, ImageCondition, ImageMode, LatentSize, Layout};
use crate::nn::Load;
use crate::ops::tape::no_grad;
use crate::rng::Rng;

mod frames;
pub mod step_cache;

pub use frames::{pictures, read, write};

use step_cache::{NoCache, Pass, StepCache};

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
    /// Sigmas of the steps, before the scheduler's shift, in place of as many even ones.
    pub sigmas: Option<Vec<f64>>,
    /// Scales of guidance.
    pub guidance: Guidance,
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
    pub size: LatentSize,
    /// Generator after the draws of denoising: some decoders draw, too.
    pub rng: Rng,
}

/// A request ready for the transformer.
#[derive(Debug)]
pub struct Prepared {
    scheduler: Scheduler,
    spacing: StepSpacing,
    size: LatentSize,
    conditions: Conditions,
    /// Latents of the first step.
    latents: Tensor,
    /// Type of the latents between steps.
    dtype: DType,
    rng: Rng,
    request: Request,
}

/// Callback with the completed and the total steps; an error stops the sampling.
pub type Progress<'a> = &'a dyn Fn(usize, usize) -> anyhow::Result<()>;

impl Request {
    /// Returns the prompts that guide this request, in the order of their embeddings in a batch.
    pub fn prompts(&self) -> Vec<&str> {
        match self.guidance.needs_negative() {
            true => vec![&self.negative_prompt, &self.prompt],
            false => vec![&self.prompt],
        }
    }

    /// Same, each with the picture that it goes with, if any: none for the negative one.
    pub fn prompts_with_pictures(&self) -> Vec<(&str, Option<&Tensor>)> {
        let mut prompts: Vec<_> = self.prompts().into_iter().map(|prompt| (prompt, None)).collect();
        if let (Start::Image(picture), Some(positive)) = (&self.start, prompts.last_mut()) {
            positive.1 = Some(picture);
        }
        prompts
    }

    /// Returns the numbers that some networks take, for a batch of this size.
    fn scalars(&self, batch: usize) -> Scalars {
        let of = |scalar, value| Scalars::of(scalar, vec![value; batch]);
        of(Scalar::FrameRate, self.fps).and(&of(Scalar::Guidance, self.guidance.scale))
    }
}

/// Runs text encoding and denoising, with the adapters of `load`; each model is dropped before the next loads.
///
/// # Errors
/// Fails for a request that the checkpoint cannot fulfil, and for missing or broken files of the checkpoint.
pub fn sample(family: &dyn Family, load: &Load, request: Request, progress: Progress) -> anyhow::Result<Sampled> {
    check(family, &request)?;
    let text = family.embed(load, &request.prompts_with_pictures())?;
    let prepared = Prepared::new(family, load, request, text)?;
    let denoiser = family.denoiser(load)?;
    prepared.denoise(&*denoiser, progress)
}

impl Prepared {
    /// Prepares a request with its embedded prompts, (1 or 2, L, D), in their order. An image or a clip to start from
    /// is encoded here.
    pub fn new(family: &dyn Family, load: &Load, request: Request, text: TextEmbeds) -> anyhow::Result<Self> {
        let size = check(family, &request)?;
        let scheduler = family.scheduler()?;
        let mut rng = Rng::new(request.seed);
        let image = match &request.start {
            Start::Image(image) => Some(family.image_condition(load, image, &size, &mut rng)?),
            Start::Text | Start::Clip(..) => None,
        };
        let spacing = family.spec().step_spacing;
        let run = start((&scheduler, spacing), &request, &size)?;
        let dtype = family.spec().latent_dtype(load);
        let mut latents = match (&request.latents, &request.start) {
            (Some(latents), _) => run.first_noise(&latents.to_device(&load.device)?.to_dtype(dtype)?)?,
            (None, Start::Clip(clip, _)) => {
                let clean = family.encode(load, clip, &size, &mut rng)?.to_dtype(dtype)?;
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
            conditions: Conditions {
                scalars: request.scalars(text.count()?),
                text,
                image,
            },
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
        let given = self
            .conditions
            .image
            .as_ref()
            .map_or(0, ImageCondition::conditioned_frames);
        let axis = self.size.layout.frames();
        let free = |latents: &Tensor| match given {
            0 => Ok(latents.clone()),
            _ => latents.narrow(axis, given, latents.dim(axis)? - given),
        };
        let mut cache = NoCache;
        let mut latents = self.latents.clone();
        let steps = run.timesteps().len();
        progress(0, steps)?;
        while let Some(timestep) = run.timestep() {
            let scale = self.request.guidance.cfg_scale();
            let scale = match self.request.dynamic_guidance {
                true => guidance::dynamic_scale(scale, run.num_steps(), timestep),
                false => scale,
            };
            let input = run.model_input(&latents)?;
            let output = self.predict((denoiser, &mut cache), &input, timestep, scale)?;
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
            progress(steps - run.remaining(), steps)?;
        }
        Ok(Sampled {
            latents,
            size: self.size,
            rng: self.rng,
        })
    }

    /// Returns the guided prediction for latents (1, ..., h, w), in f32.
    fn predict(
        &self,
        (denoiser, cache): (&dyn Denoiser, &mut dyn StepCache),
        latents: &Tensor,
        timestep: f64,
        scale: f64,
    ) -> anyhow::Result<Tensor> {
        let mut run = |conditions: &Conditions, pass: Pass| -> anyhow::Result<Tensor> {
            let batch = conditions.text.count()?;
            let latents = latents.to_dtype(conditions.text.hidden.dtype())?;
            let latents = latents.repeat((batch, 1, 1, 1, 1))?;
            let timestep = self.timestep(timestep, batch, latents.device())?;
            let input = conditions.input(latents, timestep, self.size.layout)?;
            // Adapters in training get no gradient here: no step leaves a graph.
            let output = no_grad(|| cache.predict(denoiser, &input, pass))?.detach();
            Ok(output.to_dtype(DType::F32)?)
        };
        if self.conditions.text.count()? == 1 {
            return run(&self.conditions, Pass::Positive);
        }
        let (negative, positive) = if latents.elem_count() <= ONE_BATCH {
            let both = run(&self.conditions, Pass::Both)?; // (2, ..., h, w)
            (both.narrow(0, 0, 1)?, both.narrow(0, 1, 1)?)
        } else {
            let alone = |place| -> anyhow::Result<Conditions> {
                Ok(Conditions {
                    text: self.conditions.text.narrow(place, 1)?,
                    image: self.conditions.image.clone(),
                    scalars: self.request.scalars(1),
                })
            };
            (run(&alone(0)?, Pass::Negative)?, run(&alone(1)?, Pass::Positive)?)
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
        let frames = self.size.frames();
        let of_frame = |frame| if frame < given { 0.0 } else { timestep as f32 };
        let one: Vec<f32> = (0..frames).map(of_frame).collect();
        Tensor::from_vec(one.repeat(batch), (batch, frames), device)
    }
}

/// Starts the scheduler's run over all steps, or over those that change a clip.
fn start<'a>(
    (scheduler, spacing): (&'a Scheduler, StepSpacing),
    request: &Request,
    size: &LatentSize,
) -> anyhow::Result<Run<'a>> {
    let run = match &request.sigmas {
        Some(sigmas) => scheduler.start_with(sigmas, size.seq_len)?,
        None => scheduler.start_spaced(spacing, request.steps, size.seq_len)?,
    };
    match &request.start {
        Start::Clip(_, strength) => run.skip_by(*strength),
        Start::Text | Start::Image(_) => Ok(run),
    }
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
    /// Scales of guidance.
    Guidance,
}

/// Returns every part of a request that the checkpoint cannot fulfil. Loads nothing.
pub fn refused(family: &dyn Family, request: &Request) -> Vec<UnsupportedRequest> {
    let size = family.latent_size(request.num_frames, request.height, request.width);
    let mut refused = Vec::new();
    let mut note = |what, done: anyhow::Result<()>| {
        let why = done.err().map(|error| format!("{error:#}"));
        refused.extend(why.map(|why| UnsupportedRequest { what, why }));
    };
    note(RequestSide::Guidance, request.guidance.check());
    note(
        RequestSide::Start,
        check_start(family.spec().image_mode, request, size.as_ref().ok()),
    );
    if let Ok(size) = &size {
        note(RequestSide::Latents, check_latents(request, size));
        // An unreadable scheduler is reported where it is needed.
        if let Ok(scheduler) = family.scheduler() {
            let spacing = family.spec().step_spacing;
            note(
                RequestSide::Steps,
                start((&scheduler, spacing), request, size).map(drop),
            );
        }
    }
    note(RequestSide::Size, size.map(drop));
    refused
}

fn check_start(takes_image: ImageMode, request: &Request, size: Option<&LatentSize>) -> anyhow::Result<()> {
    match (&request.start, takes_image) {
        (Start::Image(_), ImageMode::Never) => {
            bail!("this checkpoint makes clips from text alone; leave out the image")
        }
        (Start::Text | Start::Clip(..), ImageMode::Always) => {
            bail!("this checkpoint starts from an image; give it one")
        }
        _ => {}
    }
    if let (Start::Clip(..), Some(size)) = (&request.start, size) {
        ensure!(
            size.padding == 0,
            "a clip of {} frames leaves a patch half full; take {} more or fewer",
            request.num_frames,
            size.padding
        );
    }
    Ok(())
}

fn check_latents(request: &Request, size: &LatentSize) -> anyhow::Result<()> {
    if let Some(latents) = &request.latents {
        ensure!(
            latents.dims() == size.shape,
            "the latents are {:?}, but a clip of this size has {:?} ({})",
            latents.dims(),
            size.shape,
            match size.layout {
                Layout::FramesFirst => "batch, frames, channels, rows, columns",
                Layout::ChannelsFirst => "batch, channels, frames, rows, columns",
            }
        );
    }
    Ok(())
}
