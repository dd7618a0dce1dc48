//! Options of `vtrain sample`.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use candle_core::Tensor;
use clap::builder::PossibleValuesParser;

use crate::commands::precision::Precision;
use crate::config::Device;
use crate::diffusion::guidance::{Guidance, GuidanceRule, Interval};
use crate::diffusion::schedulers::SchedulerName;
use crate::lora::scaled_file::ScaledFile;
use crate::models::Offload;
use crate::models::family::ModelSpec;
use crate::nn::load::PartQuantization;
use crate::nn::quantized_cache::CacheFolder;
use crate::nn::storage::quantize::{self, Quantization};
use crate::nn::vae_memory::VaeTiling;
use crate::sample::{Request, Start, step_cache};
use crate::train::validate::Prompt;

/// Generate a clip from a prompt, an image or another clip
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A diffusers directory, or a repository of the Hugging Face Hub
    #[arg(long, value_name = "DIR|REPO")]
    pub(super) model: String,
    /// Branch, tag or commit of a Hub repository
    #[arg(long, default_value = "main")]
    pub(super) revision: String,
    /// Which variant of the weights to read: fp16 for model.fp16.safetensors
    #[arg(long, value_name = "NAME")]
    pub(super) variant: Option<String>,
    /// Another transformer than the model's own: a GGUF or safetensors file, or a folder
    #[arg(long, value_name = "FILE|DIR")]
    pub(super) transformer: Option<PathBuf>,
    /// An adapter file, or a folder with one, and its scale (repeatable)
    #[arg(long, value_name = "FILE[=SCALE]")]
    pub(super) lora: Vec<ScaledFile>,
    #[arg(long, value_name = "TEXT", required_unless_present = "prompts")]
    pub(super) prompt: Option<String>,
    /// Many clips, into the folder --output: a text file with a prompt a line, JSON lines (.jsonl), or a YAML list (.yaml) with
    /// the keys of validation.prompts; keys that a prompt does not give are those of the flags. Clips that are there stay
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "video", "latents", "output_latents", "calibrate_magcache"])]
    pub(super) prompts: Option<PathBuf>,
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(super) negative_prompt: String,
    /// Start from this image (image-to-video checkpoints)
    #[arg(long, value_name = "FILE", conflicts_with = "video")]
    pub(super) image: Option<PathBuf>,
    /// Start from this clip
    #[arg(long, value_name = "FILE")]
    pub(super) video: Option<PathBuf>,
    /// Strength of the change to the clip, 0 to 1
    #[arg(long, default_value_t = 0.8, requires = "video")]
    pub(super) strength: f64,
    #[arg(long, default_value_t = 49)]
    pub(super) num_frames: usize,
    #[arg(long, default_value_t = 480)]
    pub(super) height: usize,
    #[arg(long, default_value_t = 720)]
    pub(super) width: usize,
    /// Frames per second of the output; by default those of the model's clips
    #[arg(long)]
    pub(super) fps: Option<f64>,
    /// Denoising steps
    #[arg(long, default_value_t = 50)]
    pub(super) steps: usize,
    /// Sigmas of the steps in place of --steps even ones, from noise (1) down, before the scheduler's shift; for models
    /// that were distilled to few steps
    #[arg(long, value_name = "SIGMA,...", value_delimiter = ',', conflicts_with = "steps")]
    pub(super) sigmas: Vec<f64>,
    /// Timesteps of the steps in place of --steps even ones, as the model sees them; nothing is applied to them
    #[arg(long, value_name = "T,...", value_delimiter = ',', conflicts_with_all = ["steps", "sigmas"])]
    pub(super) timesteps: Vec<f64>,
    /// Another scheduler than the checkpoint's own, with the settings of that
    #[arg(long, value_enum)]
    pub(super) scheduler: Option<SchedulerName>,
    /// Guidance scale; 1 and below: no guidance, half the time. Models that embed a guidance scale are told this one
    #[arg(long, default_value_t = 6.0)]
    pub(super) guidance_scale: f64,
    /// Scale of classifier-free guidance for models that embed --guidance-scale; 1 and below: none
    #[arg(long, default_value_t = 1.0)]
    pub(super) true_cfg_scale: f64,
    /// Part of the steps under guidance, as shares of them; the others run once, in half the time
    #[arg(long, value_name = "FROM,TO", default_value = "0,1")]
    pub(super) guidance_interval: Interval,
    /// How guidance joins its two predictions: cfg, cfg-zero-star[:zero-steps=1], apg[:eta=1,norm=15,momentum=0]
    #[arg(long, value_name = "RULE", default_value = "cfg")]
    pub(super) guidance_rule: GuidanceRule,
    /// Let guidance grow during the run (use_dynamic_cfg)
    #[arg(long)]
    pub(super) dynamic_guidance: bool,
    /// Reuse what earlier steps computed: first-block[:threshold=0.05],
    /// taylorseer[:interval=5,order=1,before=3,after=N,of=network|attention|layers],
    /// magcache:ratios=FILE[,threshold=0.06,max-skips=3,retention=0.2], pab[:skip=2,cross=2,range=100..800],
    /// fastercache[:skip=2,range=-1..681,weight=0.5,negative-skip=5,negative-range=-1..641,low=1.1,high=1.1], auto, or none
    #[arg(long, value_name = "CACHE", default_value = "none")]
    pub(super) cache: step_cache::Config,
    /// Make the clip without --cache as well, and show both side by side, the plain one on the left
    #[arg(long, conflicts_with_all = ["prompts", "output_latents", "calibrate_magcache"])]
    pub(super) compare: bool,
    /// Measure the ratios of magcache in this run, and write them
    #[arg(long, value_name = "FILE", conflicts_with = "cache")]
    pub(super) calibrate_magcache: Option<PathBuf>,
    #[arg(long, default_value_t = 42)]
    pub(super) seed: u64,
    /// Destination of the clip: .mp4, .webm, .gif, or a folder for PNG, ending in /; with --prompts a folder
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: PathBuf,
    /// Start from these latents instead of drawn noise
    #[arg(long, value_name = "FILE", conflicts_with = "video")]
    pub(super) latents: Option<PathBuf>,
    /// Also write the denoised latents
    #[arg(long, value_name = "FILE")]
    pub(super) output_latents: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    pub(super) dtype: Precision,
    /// Store the transformer's linear layers in fewer bits: none, fp8, fp8-scaled, int8, nf4, fp4, q8_0, q4_k, ...
    #[arg(long, value_name = "FORM", default_value = "none", value_parser = form())]
    pub(super) quantization: String,
    /// The same for the text encoder
    #[arg(long, value_name = "FORM", default_value = "none", value_parser = form())]
    pub(super) text_encoder_quantization: String,
    /// Folder that keeps embedded prompts, as `precompute.dir` of a run does; by default that of the run of a --lora file
    #[arg(long, value_name = "DIR")]
    pub(super) text_cache: Option<PathBuf>,
    /// Folder that keeps what was stored while loading: auto, none, or a path
    #[arg(long, value_name = "DIR", default_value = "auto")]
    pub(super) quantization_cache: CacheFolder,
    /// Frozen weights that leave memory while they are not needed: less memory, the same clip; auto: where it must be
    #[arg(long, value_enum, default_value_t = Offload::None)]
    pub(super) offload: Offload,
    /// Decode large clips in overlapping tiles, and encode images to start from so: auto (where whole ones do not fit
    /// in memory), true or false
    #[arg(long, value_name = "auto|true|false", default_value = "auto")]
    pub(super) vae_tiling: VaeTiling,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub(super) device: Device,
    /// Say as JSON what was made, and which steps were computed and which reused
    #[arg(long)]
    pub(super) json: bool,
}

/// Parser of a form's name.
fn form() -> PossibleValuesParser {
    PossibleValuesParser::new(quantize::names())
}

impl Args {
    /// Checks values that make no sense.
    ///
    /// # Errors
    /// Names the first such flag.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(self.steps > 0, "--steps must be at least 1");
        ensure!(self.guidance_scale.is_finite(), "--guidance-scale must be a number");
        ensure!(self.true_cfg_scale.is_finite(), "--true-cfg-scale must be a number");
        ensure!(
            (0.0..=1.0).contains(&self.strength),
            "--strength must be between 0 and 1, got {}",
            self.strength
        );
        ensure!(
            !self.compare || self.cache != step_cache::Config::None,
            "--compare needs a --cache to compare with the plain clip"
        );
        Ok(())
    }

    /// The clip that the flags describe; what a file of prompts does not say.
    pub fn prompt(&self) -> Prompt {
        let list = |values: &[f64]| (!values.is_empty()).then(|| values.to_vec());
        Prompt {
            prompt: self.prompt.clone().unwrap_or_default(),
            negative_prompt: self.negative_prompt.clone(),
            num_frames: self.num_frames,
            height: self.height,
            width: self.width,
            steps: self.steps,
            sigmas: list(&self.sigmas),
            timesteps: list(&self.timesteps),
            guidance_scale: self.guidance_scale,
            true_cfg_scale: self.true_cfg_scale,
            seed: self.seed,
            fps: self.fps,
            // Images of a file of prompts are found from its folder.
            image: self
                .image
                .as_ref()
                .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())),
        }
    }

    /// Request to the sampler for a prompt that starts so, with what the flags say of all clips.
    ///
    /// # Errors
    /// Fails for latents that cannot be read.
    pub fn request(&self, prompt: &Prompt, start: Start, spec: &ModelSpec) -> anyhow::Result<Request> {
        Ok(Request {
            scheduler: self.scheduler,
            guidance: Guidance {
                rule: self.guidance_rule,
                interval: self.guidance_interval,
                ..prompt.guidance(spec.guidance)
            },
            dynamic_guidance: self.dynamic_guidance,
            latents: self.latents.as_deref().map(read_latents).transpose()?,
            cache: match self.calibrate_magcache {
                Some(_) => step_cache::Config::CalibrateMagCache,
                None => self.cache.clone(),
            },
            ..prompt.starting_from(start, spec.family.frame_rate, spec.guidance)
        })
    }

    /// Forms that matrices are stored in as they are read.
    pub fn quantization(&self) -> PartQuantization {
        PartQuantization {
            transformer: Quantization::from_name(&self.quantization),
            text_encoder: Quantization::from_name(&self.text_encoder_quantization),
        }
    }
}

fn read_latents(path: &Path) -> anyhow::Result<Tensor> {
    let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu)
        .with_context(|| format!("{}: not a readable safetensors file", path.display()))?;
    tensors
        .get("latents")
        .cloned()
        .ok_or_else(|| anyhow!("{}: has no tensor 'latents'", path.display()))
}
