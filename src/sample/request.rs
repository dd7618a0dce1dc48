//! Requests to the sampler, and what of them a checkpoint cannot fulfil.

use anyhow::{bail, ensure};
use candle_core::Tensor;

use super::step_cache;
use crate::diffusion::guidance::{Guidance, GuidanceRule};
use crate::diffusion::schedulers::{Run, Scheduler, SchedulerName, StepList, StepSpacing};
use crate::models::Family;
use crate::models::denoiser::{Scalar, Scalars};
use crate::models::family::{ImageMode, LatentSize, Layout};

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
    /// Steps in place of as many even ones.
    pub step_list: Option<StepList>,
    /// Scheduler in place of the checkpoint's own.
    pub scheduler: Option<SchedulerName>,
    /// Scales, rule and interval of guidance.
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
    /// Cache between steps.
    pub cache: step_cache::Config,
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
    pub(super) fn scalars(&self, batch: usize) -> Scalars {
        let of = |scalar, value| Scalars::of(scalar, vec![value; batch]);
        of(Scalar::FrameRate, self.fps).and(&of(Scalar::Guidance, self.guidance.scale))
    }
}

/// Returns the scheduler that a request asks for.
pub(super) fn scheduler(family: &dyn Family, request: &Request) -> anyhow::Result<Scheduler> {
    chosen(family.scheduler()?, request)
}

fn chosen(own: Scheduler, request: &Request) -> anyhow::Result<Scheduler> {
    match request.scheduler {
        Some(name) => own.replaced(name),
        None => Ok(own),
    }
}

/// Starts the scheduler's run over all steps, or over those that change a clip.
pub(super) fn start<'a>(
    (scheduler, spacing): (&'a Scheduler, StepSpacing),
    request: &Request,
    size: &LatentSize,
) -> anyhow::Result<Run<'a>> {
    let run = match &request.step_list {
        Some(steps) => scheduler.start_with(steps, size.seq_len)?,
        None => scheduler.start_spaced(spacing, request.steps, size.seq_len)?,
    };
    match &request.start {
        Start::Clip(_, strength) => run.skip_by(*strength),
        Start::Text | Start::Image(_) => Ok(run),
    }
}

/// Rejects requests that the checkpoint cannot fulfil; returns the latent size of others.
pub(super) fn check(family: &dyn Family, request: &Request) -> anyhow::Result<LatentSize> {
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
    /// Cache between steps.
    Cache,
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
    note(RequestSide::Cache, request.cache.start(&[]).map(drop));
    note(
        RequestSide::Start,
        check_start(family.spec().image_mode, request, size.as_ref().ok()),
    );
    if let Ok(size) = &size {
        note(RequestSide::Latents, check_latents(request, size));
        // An unreadable scheduler is reported where it is needed.
        if let Ok(own) = family.scheduler() {
            note(RequestSide::Steps, check_steps(family, own, request, size));
        }
    }
    note(RequestSide::Size, size.map(drop));
    refused
}

fn check_steps(family: &dyn Family, own: Scheduler, request: &Request, size: &LatentSize) -> anyhow::Result<()> {
    let flows = own.process().is_err();
    let scheduler = chosen(own, request)?;
    let run = start((&scheduler, family.spec().step_spacing), request, size)?;
    if let GuidanceRule::ZeroStar { zero_steps } = request.guidance.rule {
        ensure!(
            flows,
            "CFG-Zero* is for models of flow matching, where a prediction of 0 leaves a sample as it is; this one is none"
        );
        let steps = run.timesteps().len();
        ensure!(
            zero_steps < steps,
            "CFG-Zero* with {zero_steps} steps of 0 leaves none of {steps}; take more steps"
        );
    }
    Ok(())
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
