//! `--prompts`: the clips of a file of prompts, with one load of each part of the checkpoint.
//!
//! All texts are embedded, then all clips denoised, then all decoded. What a call finds done is not done again: clips that were
//! written for the same request ([`manifest`](super::manifest)), and latents that were denoised for it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use blake3::Hash;
use candle_core::Device;
use serde_json::{Value, json};

use super::args::Args;
use super::denoised::DenoisedClips;
use super::manifest::Manifest;
use super::prompt_file::{self, ListedPrompt};
use super::request_hash::CallHash;
use super::{contact_sheet, denoise, load, open, print_line, texts};
use crate::commands::{Exit, Failure, OrExit};
use crate::data::Bucket;
use crate::disk;
use crate::lock::{Lock, LockError};
use crate::models::Family;
use crate::nn::Load;
use crate::sample::{self, Request};
use crate::train::memory::with_free_memory;
use crate::video::Writer;

/// A clip to make.
struct ListedClip {
    listed: ListedPrompt,
    request: Request,
    /// Hash of the request.
    hash: Hash,
}

/// Makes the clips of a file of prompts that are not there yet.
pub fn run(args: &Args, file: &Path, device: &Device) -> Result<(), Failure> {
    let listed = prompt_file::read(file, &args.prompt()).or_exit(Exit::Usage)?;
    let family = open(args)?;
    let clips = clips(args, listed, &*family).or_exit(Exit::Usage)?;
    let _lock = lock(&args.output)?;
    sweep(&args.output, &clips);
    let mut manifest = Manifest::read(&args.output);
    let all: Vec<PathBuf> = clips.iter().map(|clip| args.output.join(&clip.listed.output)).collect();
    let is_made = |clip: &ListedClip| manifest.holds(&clip.listed.output, clip.hash);
    let (made, wanted): (Vec<_>, Vec<_>) = clips.into_iter().partition(is_made);
    if !made.is_empty() {
        log::info!("{} of {} clips are there already", made.len(), all.len());
    }
    for clip in made.iter().filter(|_| args.json) {
        print_line(&told(args, clip, json!({"made": false})))?;
    }
    if !wanted.is_empty() {
        make(args, &*family, device, &wanted, &mut manifest)?;
    }
    contact_sheet::write(&args.output, &all).or_exit(Exit::Training)
}

/// Returns the clips to make, each with its request.
fn clips(args: &Args, listed: Vec<ListedPrompt>, family: &dyn Family) -> anyhow::Result<Vec<ListedClip>> {
    let call = CallHash::of(args, &family.spec().directory)?;
    let (mut clips, mut wrong) = (Vec::new(), Vec::new());
    for listed in listed {
        let of = |listed: &ListedPrompt| {
            let request = args.request(&listed.prompt, listed.prompt.start()?, family.spec())?;
            let path = args.output.join(&listed.output);
            drop(Writer::create(&path, (request.height, request.width), request.fps)?);
            Ok::<_, anyhow::Error>((request, call.with(&listed.prompt)?))
        };
        match of(&listed) {
            Ok((request, hash)) => clips.push(ListedClip { listed, request, hash }),
            Err(error) => wrong.push(format!("{}: {error:#}", listed.place)),
        }
    }
    match wrong.is_empty() {
        true => Ok(clips),
        false => Err(anyhow!(wrong.join("\n"))),
    }
}

fn lock(folder: &Path) -> Result<Lock, Failure> {
    let locked = Lock::take(folder).map_err(|error| match error {
        LockError::Held { folder, by } => {
            let by = by.map_or("another process".into(), |by| by.to_string());
            let folder = folder.display();
            anyhow!("{folder}: {by} is at work there; wait for it, end it, or take another --output")
        }
        error @ LockError::Unwritable(_) => error.into(),
    });
    locked.or_exit(Exit::Training)
}

/// Removes what killed processes left half-written.
fn sweep(folder: &Path, clips: &[ListedClip]) {
    let paths = clips.iter().map(|clip| folder.join(&clip.listed.output));
    let folders: HashSet<PathBuf> = paths.filter_map(|path| Some(path.parent()?.to_path_buf())).collect();
    disk::sweep(folder);
    folders.iter().for_each(|folder| disk::sweep(folder));
}

/// Embeds, denoises, decodes.
fn make(
    args: &Args,
    family: &dyn Family,
    device: &Device,
    wanted: &[ListedClip],
    manifest: &mut Manifest,
) -> Result<(), Failure> {
    let requests: Vec<_> = wanted
        .iter()
        .map(|clip| (Some(clip.listed.place.as_str()), &clip.request))
        .collect();
    let sizes = wanted
        .iter()
        .map(|clip| [clip.request.num_frames, clip.request.height, clip.request.width]);
    let largest = sizes
        .max_by_key(|size| size.iter().product::<usize>())
        .unwrap_or([1; 3]);
    let load = load(args, family, device, Bucket::from(largest), &requests)?;
    let outputs = wanted.iter().map(|clip| clip.listed.output.as_path());
    manifest.forget(outputs).or_exit(Exit::Training)?;
    let mut hashes = HashSet::new();
    let distinct: Vec<_> = wanted.iter().filter(|clip| hashes.insert(clip.hash)).collect();
    let denoised = DenoisedClips::open(&args.output, &hashes);
    let missing: Vec<_> = distinct
        .iter()
        .copied()
        .filter(|clip| !denoised.holds(clip.hash))
        .collect();
    if !missing.is_empty() {
        let free = with_free_memory(&load);
        let requests = missing
            .iter()
            .map(|clip| (&clip.listed.prompt, clip.request.clone()))
            .collect();
        let embedded = texts::embed(args, family, &free, requests).or_exit(Exit::Model)?;
        denoise(family, &free, embedded, &mut |place, sampled| {
            denoised.write(missing[place].hash, &sampled)?;
            log::info!(
                "denoised {} of {}: {:?}",
                place + 1,
                missing.len(),
                missing[place].request.prompt
            );
            Ok(())
        })?;
    }
    decode(args, family, &with_free_memory(&load), wanted, (&denoised, manifest))?;
    hashes.into_iter().for_each(|hash| denoised.remove(hash));
    Ok(())
}

/// Decodes what was denoised, and writes the clips.
fn decode(
    args: &Args,
    family: &dyn Family,
    load: &Load,
    wanted: &[ListedClip],
    (denoised, manifest): (&DenoisedClips, &mut Manifest),
) -> Result<(), Failure> {
    log::info!("loading the VAE's decoder");
    let decoder = family.video_decoder(load).or_exit(Exit::Model)?;
    for clip in wanted {
        let ListedClip { listed, request, hash } = clip;
        let (height, width) = (request.height, request.width);
        let size = family
            .latent_size(request.num_frames, height, width)
            .or_exit(Exit::Model)?;
        let (sampled, steps) = denoised.read(*hash, size, &load.device).or_exit(Exit::Training)?;
        let path = args.output.join(&listed.output);
        let mut writer = Writer::create(&path, (height, width), request.fps).or_exit(Exit::Training)?;
        let frames = sample::decode(&*decoder, &sampled, |frame| Ok(writer.push(frame)?));
        let frames = frames.with_context(|| listed.place.clone()).or_exit(Exit::Training)?;
        writer.finish().or_exit(Exit::Training)?;
        let prompt = (request.prompt.as_str(), request.seed);
        manifest.add(&listed.output, prompt, *hash).or_exit(Exit::Training)?;
        log::info!("{frames} frames in {}", path.display());
        if args.json {
            print_line(&told(
                args,
                clip,
                json!({"made": true, "frames": frames, "steps": steps}),
            ))?;
        }
    }
    Ok(())
}

/// Returns what is told of a clip.
fn told(args: &Args, clip: &ListedClip, mut told: Value) -> Value {
    told["output"] = json!(args.output.join(&clip.listed.output));
    told["prompt"] = json!(clip.request.prompt);
    told["seed"] = json!(clip.request.seed);
    told
}
