//! `vtrain sample`: generates a clip from a prompt, an image or another clip.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use candle_core::{DType, Tensor};
use clap::builder::PossibleValuesParser;
use serde_json::json;

use super::adapter;
use super::precision::Precision;
use super::settled::place;
use super::{Exit, Failure, OrExit, check, progress};
use crate::config::{Device, RunConfig};
use crate::data::Bucket;
use crate::diffusion::guidance::{Guidance, GuidanceRule, Interval};
use crate::diffusion::schedulers::{SchedulerName, StepList};
use crate::disk;
use crate::hub;
use crate::lora::adapters::Adapters;
use crate::lora::scaled_file::ScaledFile;
use crate::models::family::ModelSpec;
use crate::models::{self, Family, FamilyName, Offload};
use crate::nn::load::PartQuantization;
use crate::nn::quantized_cache::CacheFolder;
use crate::nn::residency::ResidentShare;
use crate::nn::storage::quantize::{self, Quantization};
use crate::nn::vae_memory::{VaeMemory, VaeTiling};
use crate::nn::{Load, WeightFolder};
use crate::plan::{Subject, choice};
use crate::sample::{self, Request, Sampled, Start, step_cache};
use crate::train::chosen::ChosenSettings;
use crate::train::memory::{self, with_free_memory};
use crate::train::segments::ActivationPolicy;
use crate::video::Writer;

/// Generate a clip from a prompt, an image or another clip
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A diffusers directory, or a repository of the Hugging Face Hub
    #[arg(long, value_name = "DIR|REPO")]
    model: String,
    /// Branch, tag or commit of a Hub repository
    #[arg(long, default_value = "main")]
    revision: String,
    /// Which variant of the weights to read: fp16 for model.fp16.safetensors
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Another transformer than the model's own: a GGUF or safetensors file, or a folder
    #[arg(long, value_name = "FILE|DIR")]
    transformer: Option<PathBuf>,
    /// An adapter file, or a folder with one, and its scale (repeatable)
    #[arg(long, value_name = "FILE[=SCALE]")]
    lora: Vec<ScaledFile>,
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    #[arg(long, value_name = "TEXT", default_value = "")]
    negative_prompt: String,
    /// Start from this image (image-to-video checkpoints)
    #[arg(long, value_name = "FILE", conflicts_with = "video")]
    image: Option<PathBuf>,
    /// Start from this clip
    #[arg(long, value_name = "FILE")]
    video: Option<PathBuf>,
    /// Strength of the change to the clip, 0 to 1
    #[arg(long, default_value_t = 0.8, requires = "video")]
    strength: f64,
    #[arg(long, default_value_t = 49)]
    num_frames: usize,
    #[arg(long, default_value_t = 480)]
    height: usize,
    #[arg(long, default_value_t = 720)]
    width: usize,
    /// Frames per second of the output; by default those of the model's clips
    #[arg(long)]
    fps: Option<f64>,
    /// Denoising steps
    #[arg(long, default_value_t = 50)]
    steps: usize,
    /// Sigmas of the steps in place of --steps even ones, from noise (1) down, before the scheduler's shift; for models
    /// that were distilled to few steps
    #[arg(long, value_name = "SIGMA,...", value_delimiter = ',', conflicts_with = "steps")]
    sigmas: Vec<f64>,
    /// Timesteps of the steps in place of --steps even ones, as the model sees them; nothing is applied to them
    #[arg(long, value_name = "T,...", value_delimiter = ',', conflicts_with_all = ["steps", "sigmas"])]
    timesteps: Vec<f64>,
    /// Another scheduler than the checkpoint's own, with the settings of that
    #[arg(long, value_enum)]
    scheduler: Option<SchedulerName>,
    /// Guidance scale; 1 and below: no guidance, half the time. Models that embed a guidance scale are told this one
    #[arg(long, default_value_t = 6.0)]
    guidance_scale: f64,
    /// Scale of classifier-free guidance for models that embed --guidance-scale; 1 and below: none
    #[arg(long, default_value_t = 1.0)]
    true_cfg_scale: f64,
    /// Part of the steps under guidance, as shares of them; the others run once, in half the time
    #[arg(long, value_name = "FROM,TO", default_value = "0,1")]
    guidance_interval: Interval,
    /// How guidance joins its two predictions: cfg, cfg-zero-star[:zero-steps=1], apg[:eta=1,norm=15,momentum=0]
    #[arg(long, value_name = "RULE", default_value = "cfg")]
    guidance_rule: GuidanceRule,
    /// Let guidance grow during the run (use_dynamic_cfg)
    #[arg(long)]
    dynamic_guidance: bool,
    /// Reuse what earlier steps computed: first-block[:threshold=0.05], taylorseer[:interval=5,order=1,before=3,after=N],
    /// magcache:ratios=FILE[,threshold=0.06,max-skips=3,retention=0.2], or none
    #[arg(long, value_name = "CACHE", default_value = "none")]
    cache: step_cache::Config,
    /// Measure the ratios of magcache in this run, and write them
    #[arg(long, value_name = "FILE", conflicts_with = "cache")]
    calibrate_magcache: Option<PathBuf>,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Destination of the clip: .mp4, .webm, .gif, or a folder for PNG, ending in /
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Start from these latents instead of drawn noise
    #[arg(long, value_name = "FILE", conflicts_with = "video")]
    latents: Option<PathBuf>,
    /// Also write the denoised latents
    #[arg(long, value_name = "FILE")]
    output_latents: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    dtype: Precision,
    /// Store the transformer's linear layers in fewer bits: none, fp8, fp8-scaled, int8, nf4, fp4, q8_0, q4_k, ...
    #[arg(long, value_name = "FORM", default_value = "none", value_parser = form())]
    quantization: String,
    /// The same for the text encoder
    #[arg(long, value_name = "FORM", default_value = "none", value_parser = form())]
    text_encoder_quantization: String,
    /// Folder that keeps what was stored while loading: auto, none, or a path
    #[arg(long, value_name = "DIR", default_value = "auto")]
    quantization_cache: CacheFolder,
    /// Frozen weights that leave memory while they are not needed: less memory, the same clip; auto: where it must be
    #[arg(long, value_enum, default_value_t = Offload::None)]
    offload: Offload,
    /// Decode large clips in overlapping tiles, and encode images to start from so: auto (where whole ones do not fit
    /// in memory), true or false
    #[arg(long, value_name = "auto|true|false", default_value = "auto")]
    vae_tiling: VaeTiling,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: Device,
    /// Say as JSON what was made, and which steps were computed and which reused
    #[arg(long)]
    json: bool,
}

/// Parser of a form's name.
fn form() -> PossibleValuesParser {
    PossibleValuesParser::new(quantize::names())
}

/// Runs `vtrain sample`: generates one clip and writes it.
///
/// # Errors
/// Fails for a request that the checkpoint cannot fulfil, and for files that cannot be read or written, each with its
/// exit code.
pub fn run(args: Args) -> Result<(), Failure> {
    let device = args.device.open().or_exit(Exit::Usage)?;
    let dtype = DType::from(args.dtype);
    // Reports errors before anything is computed.
    let start = start(&args).or_exit(Exit::Usage)?;
    let size = (args.height, args.width);
    // The usual frame rate depends on the model, but whether a file can be written is known now.
    drop(Writer::create(&args.output, size, args.fps.unwrap_or(1.0)).or_exit(Exit::Usage)?);
    let directory = hub::fetch::locate(&args.model, &args.revision, args.variant.as_deref()).or_exit(Exit::Model)?;
    let checkpoint = WeightFolder::new(&directory, args.variant.as_deref());
    let checkpoint = match &args.transformer {
        Some(path) => models::replace_transformer(checkpoint, path).or_exit(Exit::Model)?,
        None => checkpoint,
    };
    let family = models::open(checkpoint, FamilyName::Auto).or_exit(Exit::Model)?;
    let request = request(&args, start, family.spec()).or_exit(Exit::Usage)?;
    let writer = Writer::create(&args.output, size, request.fps).or_exit(Exit::Usage)?;
    let adapters = adapters(&args.lora, &device).or_exit(Exit::Model)?;
    let quantization = PartQuantization {
        transformer: Quantization::from_name(&args.quantization),
        text_encoder: Quantization::from_name(&args.text_encoder_quantization),
    };
    let load = Load::new(dtype, &device)
        .with_quantization(quantization)
        .with_quantized_cache(args.quantization_cache.path().as_deref())
        .with_residency(offload(&args, &*family, &device).residency(ResidentShare::Auto))
        .with_vae(VaeMemory {
            tiling: args.vae_tiling,
            ..VaeMemory::WHOLE
        })
        .with_adapters(adapters.clone());
    check::of_sample(&*family, &load, &request, &adapters)?;
    let sampled = denoise(&*family, &with_free_memory(&load), request).or_exit(Exit::Model)?;
    if let Some(path) = &args.output_latents {
        write_latents(path, &sampled.latents).or_exit(Exit::Training)?;
    }
    if let (Some(path), Some(ratios)) = (&args.calibrate_magcache, &sampled.ratios) {
        let table = json!(ratios).to_string();
        disk::write_whole(path, table.as_bytes()).or_exit(Exit::Training)?;
    }
    let frames = sample::write(&*family, &with_free_memory(&load), &sampled, writer, |_| {}).or_exit(Exit::Training)?;
    log::info!("{frames} frames in {}", args.output.display());
    if args.json {
        println!(
            "{}",
            json!({ "output": args.output, "frames": frames, "steps": sampled.steps })
        );
    }
    Ok(())
}

/// Returns what leaves memory; under `auto` blocks do where the clip is planned not to fit in memory otherwise.
fn offload(args: &Args, family: &dyn Family, device: &candle_core::Device) -> Offload {
    let Some(room) = memory::free(device).filter(|_| args.offload == Offload::Auto) else {
        return args.offload;
    };
    let mut config = RunConfig::default();
    config.precompute.vae_tiling = args.vae_tiling;
    config.model = models::Config {
        dtype: args.dtype.into(),
        quantization: Quantization::from_name(&args.quantization).into(),
        text_encoder_quantization: Quantization::from_name(&args.text_encoder_quantization).into(),
        offload: args.offload,
        ..models::Config::default()
    };
    config.train.activation_policy = ActivationPolicy::Inputs; // no matter
    let folder = family.spec().directory.clone();
    let subject = Subject::new(&config, folder, Some(family), None, (place(device), Some(room)));
    let bucket = Bucket::from([args.num_frames, args.height, args.width]);
    let stages = |config: &RunConfig| subject.sampling(config, family, bucket, args.guidance_scale > 1.0);
    match choice::choose(&config, &ChosenSettings::default(), room, stages) {
        Ok(choice) => {
            log::info!("{}", choice.reason("the clip", room));
            choice.config.model.offload
        }
        Err(error) => {
            log::warn!("auto: nothing is offloaded, since there is no plan of the memory: {error:#}");
            Offload::None
        }
    }
}

fn denoise(family: &dyn Family, load: &Load, request: Request) -> anyhow::Result<Sampled> {
    let bar = progress::bar("denoising", 0);
    let on = progress::on(&bar);
    let sampled = sample::sample(family, load, request, &|done, of| {
        on(done, of);
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok(sampled)
}

/// Reads the start of the clip, after checking the settings.
fn start(args: &Args) -> anyhow::Result<Start> {
    ensure!(args.steps > 0, "--steps must be at least 1");
    ensure!(args.guidance_scale.is_finite(), "--guidance-scale must be a number");
    ensure!(args.true_cfg_scale.is_finite(), "--true-cfg-scale must be a number");
    ensure!(
        (0.0..=1.0).contains(&args.strength),
        "--strength must be between 0 and 1, got {}",
        args.strength
    );
    let size = (args.height, args.width);
    Ok(match (&args.image, &args.video) {
        (Some(path), _) => Start::Image(sample::read(path, 1, size)?.squeeze(2)?),
        (None, Some(path)) => Start::Clip(sample::read(path, args.num_frames, size)?, args.strength),
        (None, None) => Start::Text,
    })
}

fn request(args: &Args, start: Start, spec: &ModelSpec) -> anyhow::Result<Request> {
    Ok(Request {
        prompt: args.prompt.clone(),
        negative_prompt: args.negative_prompt.clone(),
        num_frames: args.num_frames,
        height: args.height,
        width: args.width,
        steps: args.steps,
        step_list: match (&args.sigmas[..], &args.timesteps[..]) {
            ([], []) => None,
            (_, []) => Some(StepList::Sigmas(args.sigmas.clone())),
            _ => Some(StepList::Timesteps(args.timesteps.clone())),
        },
        scheduler: args.scheduler,
        guidance: Guidance {
            rule: args.guidance_rule,
            interval: args.guidance_interval,
            ..Guidance::of(spec.guidance, args.guidance_scale, args.true_cfg_scale)
        },
        dynamic_guidance: args.dynamic_guidance,
        seed: args.seed,
        fps: args.fps.unwrap_or(spec.family.frame_rate),
        start,
        latents: args.latents.as_deref().map(read_latents).transpose()?,
        cache: match args.calibrate_magcache {
            Some(_) => step_cache::Config::CalibrateMagCache,
            None => args.cache.clone(),
        },
    })
}

fn read_latents(path: &Path) -> anyhow::Result<Tensor> {
    let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu)
        .with_context(|| format!("{}: not a readable safetensors file", path.display()))?;
    tensors
        .get("latents")
        .cloned()
        .ok_or_else(|| anyhow!("{}: has no tensor 'latents'", path.display()))
}

fn write_latents(path: &Path, latents: &Tensor) -> anyhow::Result<()> {
    let latents = latents.to_device(&candle_core::Device::Cpu)?;
    let bytes = safetensors::serialize([("latents", latents)], None)?;
    Ok(disk::write_whole(path, &bytes)?)
}

fn adapters(loras: &[ScaledFile], device: &candle_core::Device) -> anyhow::Result<Arc<Adapters>> {
    let files = loras.iter().map(adapter::read).collect::<anyhow::Result<_>>()?;
    Ok(Arc::new(Adapters::new(files, device)))
}
