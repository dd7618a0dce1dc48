//! `vtrain sample`: generates a clip from a prompt, an image or another clip; or many, from a file of prompts.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::adapter;
use super::settled::place;
use super::{Exit, Failure, OrExit, check, print, progress};
use crate::config::RunConfig;
use crate::data::Bucket;
use crate::disk;
use crate::hub;
use crate::lora::adapters::Adapters;
use crate::lora::scaled_file::ScaledFile;
use crate::models::{self, Family, FamilyName, Offload};
use crate::nn::residency::ResidentShare;
use crate::nn::vae_memory::VaeMemory;
use crate::nn::{Load, WeightFolder};
use crate::plan::{Subject, choice};
use crate::sample::{self, Embedded, Progress, Request, Sampled, Start};
use crate::train::chosen::ChosenSettings;
use crate::train::memory::{self, with_free_memory};
use crate::train::segments::ActivationPolicy;
use crate::video::Writer;

mod args;
mod compare;
mod contact_sheet;
mod denoised;
mod manifest;
mod many;
mod prompt_file;
mod request_hash;
mod texts;

pub use args::Args;

/// Runs `vtrain sample`: generates one clip, or those of a file of prompts, and writes them.
///
/// # Errors
/// Fails for a request that the checkpoint cannot fulfil, and for files that cannot be read or written, each with its
/// exit code.
pub fn run(args: Args) -> Result<(), Failure> {
    let device = args.device.open().or_exit(Exit::Usage)?;
    args.check().or_exit(Exit::Usage)?;
    match &args.prompts {
        Some(file) => many::run(&args, file, &device),
        None => one(&args, &device),
    }
}

/// Generates one clip.
fn one(args: &Args, device: &Device) -> Result<(), Failure> {
    // Reports errors before anything is computed.
    let start = start(args).or_exit(Exit::Usage)?;
    let width = if args.compare { 2 * args.width } else { args.width };
    let size = (args.height, width);
    // The usual frame rate depends on the model, but whether a file can be written is known now.
    drop(Writer::create(&args.output, size, args.fps.unwrap_or(1.0)).or_exit(Exit::Usage)?);
    let family = open(args)?;
    let prompt = args.prompt();
    let request = args.request(&prompt, start, family.spec()).or_exit(Exit::Usage)?;
    let writer = Writer::create(&args.output, size, request.fps).or_exit(Exit::Usage)?;
    let bucket = Bucket::from([args.num_frames, args.height, args.width]);
    let load = load(args, &*family, device, bucket, &[(None, &request)])?;
    let free = with_free_memory(&load);
    let embedded = texts::embed(args, &*family, &free, vec![(&prompt, request)]).or_exit(Exit::Model)?;
    if args.compare {
        return compared(args, &*family, &load, embedded, writer);
    }
    let mut sampled = None;
    denoise(&*family, &free, embedded, &mut |_, clip| {
        sampled = Some(clip);
        Ok(())
    })?;
    let sampled = sampled.expect("the one request was denoised");
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
        print_line(&json!({ "output": args.output, "frames": frames, "steps": sampled.steps }))?;
    }
    Ok(())
}

/// Generates a clip with and without its cache, side by side.
fn compared(
    args: &Args,
    family: &dyn Family,
    load: &Load,
    embedded: Vec<Embedded>,
    writer: Writer,
) -> Result<(), Failure> {
    let request = embedded.into_iter().next().expect("there is one request");
    let both = with_bar(|progress| compare::denoise(family, &with_free_memory(load), request, progress))?;
    let compared = compare::write(family, &with_free_memory(load), &both, args.width, writer);
    let mut compared = compared.or_exit(Exit::Training)?;
    log::info!("the plain clip beside the cached one: {}", args.output.display());
    if args.json {
        compared["output"] = json!(args.output);
        print_line(&compared)?;
    }
    Ok(())
}

/// Opens the checkpoint.
fn open(args: &Args) -> Result<Box<dyn Family>, Failure> {
    let directory = hub::fetch::locate(&args.model, &args.revision, args.variant.as_deref()).or_exit(Exit::Model)?;
    let checkpoint = WeightFolder::new(&directory, args.variant.as_deref());
    let checkpoint = match &args.transformer {
        Some(path) => models::replace_transformer(checkpoint, path).or_exit(Exit::Model)?,
        None => checkpoint,
    };
    models::open(checkpoint, FamilyName::Auto).or_exit(Exit::Model)
}

/// Returns how parts of the checkpoint are loaded, for requests of this size at most, after a check that it can fulfil them.
fn load(
    args: &Args,
    family: &dyn Family,
    device: &Device,
    bucket: Bucket,
    requests: &[(Option<&str>, &Request)],
) -> Result<Load, Failure> {
    let adapters = adapters(&args.lora, device).or_exit(Exit::Model)?;
    let load = Load::new(DType::from(args.dtype), device)
        .with_quantization(args.quantization())
        .with_quantized_cache(args.quantization_cache.path().as_deref())
        .with_residency(offload(args, family, device, bucket).residency(ResidentShare::Auto))
        .with_vae(VaeMemory {
            tiling: args.vae_tiling,
            ..VaeMemory::WHOLE
        })
        .with_adapters(adapters.clone());
    check::of_sample(family, &load, requests.iter().copied(), &adapters)?;
    Ok(load)
}

/// Returns what leaves memory; under `auto` blocks do where a clip of this size is planned not to fit in memory otherwise.
fn offload(args: &Args, family: &dyn Family, device: &Device, bucket: Bucket) -> Offload {
    let Some(room) = memory::free(device).filter(|_| args.offload == Offload::Auto) else {
        return args.offload;
    };
    let mut config = RunConfig::default();
    config.precompute.vae_tiling = args.vae_tiling;
    config.model = models::Config {
        dtype: args.dtype.into(),
        quantization: args.quantization().transformer.into(),
        text_encoder_quantization: args.quantization().text_encoder.into(),
        offload: args.offload,
        ..models::Config::default()
    };
    config.train.activation_policy = ActivationPolicy::Inputs; // no matter
    let folder = family.spec().directory.clone();
    let subject = Subject::new(&config, folder, Some(family), None, (place(device), Some(room)));
    let stages = |config: &RunConfig| subject.sampling(config, family, bucket, args.guidance_scale > 1.0);
    match choice::choose(&config, &ChosenSettings::default(), room, &stages) {
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

/// Denoises requests, with a bar for each.
fn denoise(
    family: &dyn Family,
    load: &Load,
    requests: Vec<Embedded>,
    done: &mut dyn FnMut(usize, Sampled) -> anyhow::Result<()>,
) -> Result<(), Failure> {
    with_bar(|progress| sample::sample_all(family, load, requests, progress, done))
}

/// Denoises with a bar for the steps.
fn with_bar<T>(denoise: impl FnOnce(Progress) -> anyhow::Result<T>) -> Result<T, Failure> {
    let bar = progress::bar("denoising", 0);
    let on = progress::on(&bar);
    let progress = |done, of| {
        on(done, of);
        Ok(())
    };
    let denoised = denoise(&progress).or_exit(Exit::Model)?;
    bar.finish_and_clear();
    Ok(denoised)
}

/// Reads the start of the one clip.
fn start(args: &Args) -> anyhow::Result<Start> {
    match &args.video {
        Some(path) => {
            let clip = sample::read(path, args.num_frames, (args.height, args.width))?;
            Ok(Start::Clip(clip, args.strength))
        }
        None => args.prompt().start(),
    }
}

fn print_line(line: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{line}\n"))
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
