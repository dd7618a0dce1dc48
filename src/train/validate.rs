//! Validation videos, which show the progress of a run; made by the same sampler as `sample`.
//!
//! `output_dir/validation/step-000500/00-<slug>.mp4`: one per prompt, always from the same seed. Step 0 shows the base
//! model without adapters.

use std::path::PathBuf;

use anyhow::{Context, bail};
use candle_core::{DType, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::memory::with_free_memory;
use crate::data::cache::{Encoded, Picture, TextId};
use crate::diffusion::guidance::{Guidance, GuidanceMode};
use crate::diffusion::schedulers::StepList;
use crate::models::Family;
use crate::models::denoiser::{Denoiser, TextEmbeds};
use crate::models::family::ModelSpec;
use crate::nn::Load;
use crate::problems::Problems;
use crate::run_dir::{self, RunDir};
use crate::sample::{self, Prepared, Request, RequestSide, Sampled, Start, UnsupportedRequest, step_cache};
use crate::video::{Clip, VideoError, Writer};

/// `validation:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Steps between rounds of videos.
    pub every: usize,
    /// Cache between the steps of a video, in which later ones reuse what earlier ones computed:
    /// `first-block:threshold=0.05`, `taylorseer:interval=5,order=1`, `magcache:ratios=FILE,threshold=0.06`, `pab:skip=2`,
    /// `fastercache`, `auto`, or `none`.
    pub cache: step_cache::Config,
    /// Videos to make.
    pub prompts: Vec<Prompt>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            every: 500,
            cache: step_cache::Config::None,
            prompts: Vec::new(),
        }
    }
}

/// One video to make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Prompt {
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
    /// Sigmas of the steps in place of `steps` even ones, from noise (1) down, before the scheduler's shift.
    pub sigmas: Option<Vec<f64>>,
    /// Timesteps of the steps in place of `steps` even ones, as the model sees them.
    pub timesteps: Option<Vec<f64>>,
    /// Guidance scale: of classifier-free guidance, with none at 1 and below, or the one that models are told that embed it.
    pub guidance_scale: f64,
    /// Scale of classifier-free guidance for models that embed `guidance_scale`; none at 1 and below.
    pub true_cfg_scale: f64,
    /// Seed of the noise.
    pub seed: u64,
    /// Frames per second of the video. null: those of the model's clips.
    pub fps: Option<f64>,
    /// First image of the video, for image-to-video checkpoints.
    pub image: Option<PathBuf>,
}

impl Default for Prompt {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: String::new(),
            num_frames: 49,
            height: 480,
            width: 720,
            steps: 50,
            sigmas: None,
            timesteps: None,
            guidance_scale: 6.0,
            true_cfg_scale: 1.0,
            seed: 0,
            fps: None,
            image: None,
        }
    }
}

impl Config {
    /// Checks for values that parse but make no sense, by path below `validation`.
    pub fn check(&self, problems: &mut Problems) {
        problems.at_least_one("every", self.every);
        problems.failed("cache", self.cache.start(&[]).map_err(|error| format!("{error:#}")));
        for (i, prompt) in self.prompts.iter().enumerate() {
            problems.section(format!("prompts[{i}]"), |problems| prompt.check(problems));
        }
    }
}

impl Prompt {
    /// Checks for values that parse but make no sense, by key.
    pub fn check(&self, problems: &mut Problems) {
        problems.at_least_one("num_frames", self.num_frames);
        problems.at_least_one("height", self.height);
        problems.at_least_one("width", self.width);
        problems.at_least_one("steps", self.steps);
        if self.sigmas.is_some() && self.timesteps.is_some() {
            problems.push("timesteps", "give either sigmas or timesteps");
        }
        if let Some(fps) = self.fps {
            problems.above_zero("fps", fps);
        }
        for (key, scale) in [
            ("guidance_scale", self.guidance_scale),
            ("true_cfg_scale", self.true_cfg_scale),
        ] {
            if !scale.is_finite() {
                problems.push(key, format!("must be a number, got {scale}"));
            }
        }
        if self.prompt.trim().is_empty() {
            problems.push("prompt", "must not be empty");
        }
    }

    /// The prompt, with its image for text encoders that see it.
    pub fn text_id(&self, sees_pictures: bool) -> TextId {
        let picture = self.image.clone().filter(|_| sees_pictures);
        TextId {
            text: self.prompt.clone(),
            picture: picture.map(|path| Picture::File(path, [self.height, self.width])),
        }
    }

    /// Scales of guidance, as such a checkpoint uses them.
    pub fn guidance(&self, mode: GuidanceMode) -> Guidance {
        Guidance::of(mode, self.guidance_scale, self.true_cfg_scale)
    }

    /// Request to the sampler, with its image read.
    pub fn request(&self, spec: &ModelSpec) -> anyhow::Result<Request> {
        Ok(self.starting_from(self.start()?, spec.family.frame_rate, spec.guidance))
    }

    /// Start of the clip, with its image read.
    pub fn start(&self) -> anyhow::Result<Start> {
        Ok(match &self.image {
            Some(path) => Start::Image(sample::read(path, 1, (self.height, self.width))?.squeeze(2)?),
            None => Start::Text,
        })
    }

    /// Checks what of it cannot be made: by the checkpoint, if known, or at all. By path below the prompt, empty for its
    /// sizes together.
    pub fn refused(&self, family: Option<&dyn Family>, problems: &mut Problems) {
        let frame_rate = family.map(|family| family.spec().family.frame_rate);
        // The checkpoint is asked only whether an image is given, not which.
        let start = self
            .image
            .as_ref()
            .map(|_| Tensor::zeros((1, 3, 1, 1), DType::F32, &Device::Cpu));
        let start = match start.transpose() {
            Ok(start) => start.map_or(Start::Text, Start::Image),
            Err(error) => return problems.push("image", error),
        };
        let mode = family.map_or(GuidanceMode::ClassifierFree, |family| family.spec().guidance);
        let request = self.starting_from(start, frame_rate.unwrap_or(1.0), mode);
        let refused = family
            .map(|family| sample::refused(family, &request))
            .unwrap_or_default();
        let sized = refused.iter().all(|refused| refused.what != RequestSide::Size);
        for UnsupportedRequest { what, why } in refused {
            let key = match what {
                RequestSide::Size | RequestSide::Latents => "",
                RequestSide::Start => "image",
                RequestSide::Steps => "steps",
                RequestSide::Guidance => "true_cfg_scale",
                RequestSide::Cache => "", // of all prompts
            };
            problems.push(key, why);
        }
        if let Some(path) = &self.image {
            let read = match (family, sized) {
                (Some(_), true) => sample::read(path, 1, (self.height, self.width)).map(drop),
                _ => Clip::open(path).map(drop).map_err(anyhow::Error::from), // the size is not reliable
            };
            problems.failed("image", read.map_err(|error| format!("{error:#}")));
        }
        if sized {
            let written = self.could_be_written(frame_rate);
            problems.failed("", written.map_err(|error| format!("{error:#}")));
        }
    }

    /// Checks that a video of this size and frame rate can be encoded, in a temporary folder.
    fn could_be_written(&self, frame_rate: Option<f64>) -> anyhow::Result<()> {
        let Some(fps) = self.fps.or(frame_rate) else {
            return Ok(());
        };
        let scratch = tempfile::tempdir().context("the folder for temporary files")?;
        let path = scratch.path().join("validation.mp4");
        match Writer::create(&path, (self.height, self.width), fps) {
            Err(VideoError::Encode { reason, .. }) => bail!("its video cannot be encoded: {reason}"),
            created => Ok(created.map(drop)?),
        }
    }

    fn step_list(&self) -> Option<StepList> {
        let sigmas = self.sigmas.clone().map(StepList::Sigmas);
        sigmas.or(self.timesteps.clone().map(StepList::Timesteps))
    }

    /// Request to the sampler that starts so, of a checkpoint with this frame rate and this use of a guidance scale.
    pub fn starting_from(&self, start: Start, frame_rate: f64, mode: GuidanceMode) -> Request {
        Request {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            num_frames: self.num_frames,
            height: self.height,
            width: self.width,
            steps: self.steps,
            step_list: self.step_list(),
            scheduler: None,
            guidance: self.guidance(mode),
            dynamic_guidance: false,
            seed: self.seed,
            fps: self.fps.unwrap_or(frame_rate),
            start,
            latents: None,
            cache: step_cache::Config::None,
        }
    }
}

/// Generator of a run's validation videos.
pub struct Validator<'a> {
    /// The checkpoint's family.
    pub family: &'a dyn Family,
    /// Embedded prompts.
    pub encoded: &'a Encoded,
    /// Videos to make.
    pub prompts: &'a [Prompt],
    /// Cache between steps.
    pub cache: &'a step_cache::Config,
    /// Where videos go.
    pub dir: RunDir,
    /// How parts of the checkpoint are loaded.
    pub load: Load,
}

/// A video that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ValidationVideo {
    /// `00-a-red-ball`
    pub name: String,
    /// Path of the video.
    pub path: PathBuf,
    /// The middle frame (H, W, 3), and its size.
    #[serde(skip)]
    pub frame: Vec<u8>,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
}

impl Validator<'_> {
    /// Denoises for prompt `index`. `progress` gets the completed steps, and stops it by an error.
    pub fn denoise(
        &self,
        index: usize,
        denoiser: &dyn Denoiser,
        progress: sample::Progress,
    ) -> anyhow::Result<Sampled> {
        let prompt = &self.prompts[index];
        let mut request = prompt.request(self.family.spec())?;
        request.cache = self.cache.clone();
        let negative = request
            .guidance
            .needs_negative()
            .then(|| prompt.negative_prompt.as_str().into());
        let texts = negative.into_iter().chain([prompt.text_id(self.encoded.sees_pictures)]);
        let embeddings = texts.map(|text| self.encoded.text(&text));
        let embeddings = embeddings.collect::<anyhow::Result<Vec<_>>>()?;
        let text = TextEmbeds::stack(&embeddings, &self.family.spec().text())?; // (1 or 2, L, D)
        let text = text.to_device(&self.load.device)?.to_dtype(self.load.dtype)?;
        Prepared::new(self.family, &with_free_memory(&self.load), request, text)?.denoise(denoiser, progress)
    }

    /// Decodes the latents for prompt `index`, and writes its video.
    pub fn write(&self, index: usize, step: u64, sampled: &Sampled) -> anyhow::Result<ValidationVideo> {
        let prompt = &self.prompts[index];
        let path = self.path(index, step);
        let fps = prompt.fps.unwrap_or(self.family.spec().family.frame_rate);
        let writer = Writer::create(&path, (prompt.height, prompt.width), fps)?;
        let (mut count, mut middle) = (0, Vec::new());
        sample::write(self.family, &with_free_memory(&self.load), sampled, writer, |frame| {
            if count == prompt.num_frames / 2 {
                middle = frame.to_vec();
            }
            count += 1;
        })?;
        Ok(ValidationVideo {
            name: self.name(index),
            path,
            frame: middle,
            height: prompt.height,
            width: prompt.width,
        })
    }

    /// Returns the path of the video for prompt `index`.
    pub fn path(&self, index: usize, step: u64) -> PathBuf {
        let round = self.dir.validation().join(run_dir::step_name(step));
        round.join(format!("{}.mp4", self.name(index)))
    }

    fn name(&self, index: usize) -> String {
        name(index, &self.prompts[index].prompt)
    }
}

/// Returns the name of a prompt's videos, by its index among the prompts: `00-a-red-ball`.
pub fn name(index: usize, prompt: &str) -> String {
    format!("{index:02}-{}", slug(prompt))
}

/// Returns a prompt as a file name: its first words in lower-case letters and digits, joined by hyphens.
fn slug(prompt: &str) -> String {
    const LONGEST: usize = 40;
    let words = prompt
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    let mut slug = String::new();
    for word in words {
        if !slug.is_empty() && slug.len() + word.len() >= LONGEST {
            break;
        }
        if !slug.is_empty() {
            slug.push('-');
        }
        slug.extend(word.chars().take(LONGEST).map(|c| c.to_ascii_lowercase()));
    }
    if slug.is_empty() { "prompt".into() } else { slug }
}
