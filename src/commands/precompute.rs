//! `vtrain precompute`, also the first phase of `vtrain train`: encodes every clip and caption once into the cache.
//!
//! Captions come first; the text encoder is dropped before the VAE loads. Clips are decoded ahead while another is
//! encoded. Cached items are neither decoded nor encoded, and if nothing is missing nothing is loaded. Ranks divide the
//! missing items, and fill one cache.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

use anyhow::{Context, anyhow};
use candle_core::Tensor;
use serde_json::json;

use super::check::{self, Download, Until};
use super::{Exit, Failure, OrExit, check_dataset, progress, ranks, settled};
use crate::config::RunConfig;
use crate::data::cache::{Cache, Encoded, Key, Picture, TextId};
use crate::data::dataset::OnInvalidClip;
use crate::data::{Report, pixels};
use crate::distributed::Communicator;
use crate::finite;
use crate::hub;
use crate::models::family::{TextEncoder, VideoEncoder};
use crate::models::{self, Family};
use crate::nn::{Load, checkpoint};
use crate::sample;
use crate::train::chosen::ChosenSettings;
use crate::train::{learnable, memory};
use crate::video::Frames;

mod plan;
mod rounds;
mod shortened;
mod tiles;

use plan::{ClipPlan, Plan};

/// Number of decoded clips that wait to be encoded.
const AHEAD: usize = 2;

/// Message for an early end.
const KEPT: &str = "finished encodings are kept, and the same command resumes from there";

/// Encode the clips and captions of a run once, for training to read
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run file (YAML)
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Override a key of the run file (repeatable; values are YAML)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the files of every clip and caption as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `vtrain precompute`: encodes clips and captions that the cache lacks.
///
/// # Errors
/// Fails for settings, clips, or model files that cannot be used, each with its exit code.
pub fn run(args: Args) -> Result<(), Failure> {
    let config = RunConfig::load(&args.config, &args.set).or_exit(Exit::Usage)?;
    ranks::run_distributed(config, |config, ranks| {
        let (report, family) = checked(config, Until::Encoded, Download::Allowed, ranks)?;
        let family = here(family)?;
        let recorded = ChosenSettings::default();
        let settled = settled::settle(config, Until::Encoded, Some(&*family), &report, &recorded, ranks)?;
        let encoded = precompute(&settled.config, &*family, &report, &[], &AtomicBool::new(false), ranks)?;
        if args.json && ranks.is_first() {
            print_json(&encoded)?;
        }
        Ok(())
    })
}

/// Surveys the training data, and checks the model and the settings, reporting all problems at once. Every rank checks
/// for itself.
///
/// # Errors
/// Lists everything that [`check_dataset`] and [`check`] find; problems of the data set decide the exit code.
pub fn checked(
    config: &RunConfig,
    until: Until,
    download: Download,
    ranks: &dyn Communicator,
) -> Result<(Report, Option<Box<dyn Family>>), Failure> {
    let report = check_dataset::survey(&config.datasets, false);
    if ranks.is_first() {
        check_dataset::tell(&report);
    }
    // Nothing is fetched for a run that cannot start.
    let (judged, download) = match check_dataset::judge(&report) {
        Ok(()) => (Ok(()), download),
        Err(failure) => (Err(failure), Download::No),
    };
    let checked = check::of_run(config, until, download, ranks);
    let both = match (judged, checked) {
        (Ok(()), Ok(family)) => learns(config, &report, family.as_deref()).map(|_| (report, family)),
        (Err(data), Err(run)) => Err(Failure {
            exit: data.exit,
            error: anyhow!("{data}\n{run}"),
        }),
        (Err(failure), _) | (_, Err(failure)) => Err(failure),
    };
    ranks::each(ranks, both)
}

/// Checks that the model can learn from these samples; returns a warning if it learns nothing from some.
fn learns(config: &RunConfig, report: &Report, family: Option<&dyn Family>) -> Result<Option<String>, Failure> {
    let Some(family) = family else {
        return Ok(None);
    };
    let buckets = report.samples.iter().map(|sample| sample.bucket);
    learnable::check(family, buckets, &config.train).map_err(Failure::usage)
}

/// Returns the checked model of a run that may download it.
pub fn here(family: Option<Box<dyn Family>>) -> Result<Box<dyn Family>, Failure> {
    family.context("the model was not fetched").or_exit(Exit::Model)
}

/// Opens the model of a run. Parts that only encode may be missing, if the run's cache has seen them.
pub fn open_model(config: &RunConfig) -> Result<Box<dyn Family>, Failure> {
    let model = &config.model;
    let directory = hub::fetch::locate(&model.path, &model.revision, model.variant.as_deref()).or_exit(Exit::Model)?;
    let cached = Cache::open(&config.precompute.folder(&config.run_dir())).remembered(&directory);
    let folder = model.folder(&directory).or_exit(Exit::Model)?;
    models::open_with(folder, model.family, &cached).or_exit(Exit::Model)
}

/// Encodes what the cache lacks of the surveyed clips, their captions, the empty caption, the validation prompts and
/// `more_prompts`.
///
/// # Errors
/// Fails for buckets that the model does not support or learns nothing from (2), clips that cannot be decoded (3),
/// model files (4), and too little space, found before anything is encoded (5); interrupted (130) once `stop` is true:
/// the next run resumes.
pub fn precompute(
    config: &RunConfig,
    family: &dyn Family,
    report: &Report,
    more_prompts: &[&str],
    stop: &AtomicBool,
    ranks: &dyn Communicator,
) -> Result<Encoded, Failure> {
    if let Some(warning) = learns(config, report, Some(family))?.filter(|_| ranks.is_first()) {
        log::warn!("{warning}");
    }
    let load = vae_load(config, ranks)?;
    let plan = Plan::make_together(ranks, || Plan::make(config, family, &load, report, more_prompts, stop))?;
    plan.announce();
    plan.ensure_parts(family)?;
    if ranks.is_first() {
        plan.cache.sweep(); // before the space is checked
        plan.ensure_room()?;
    }
    let done = encode_texts(config, family, &plan, stop, ranks);
    let done = done.and_then(|()| encode_clips(config, family, &load, &plan, stop, ranks));
    plan.cache.save();
    let encoded = plan.fulfilled(&done?);
    if encoded.samples.is_empty() {
        return Err(anyhow!("none of the clips could be decoded")).or_exit(Exit::Data);
    }
    Ok(encoded)
}

fn encode_texts(
    config: &RunConfig,
    family: &dyn Family,
    plan: &Plan,
    stop: &AtomicBool,
    ranks: &dyn Communicator,
) -> Result<(), Failure> {
    if plan.missing_texts.is_empty() {
        return Ok(());
    }
    let missing: Vec<&(TextId, Key)> = plan.missing_texts().collect();
    let mut conditioner: Option<Box<dyn TextEncoder>> = None;
    let mut count = progress::Count::start("captions", missing.len());
    let encode = |place: usize| -> Result<rounds::Encoded, Failure> {
        go_on(stop)?;
        let (id, key) = missing[place];
        if plan.cache.has_come(key, &plan.text_form) {
            return Ok(rounds::Encoded::Done);
        }
        let TextId { text, picture } = id;
        let picture = match picture
            .as_ref()
            .map(|picture| seen(config, plan, picture))
            .transpose()?
        {
            Some(None) => return Ok(rounds::Encoded::Done), // its clip is reported when it is encoded itself
            picture => picture.flatten(),
        };
        let conditioner = match &mut conditioner {
            Some(conditioner) => conditioner,
            none => {
                log::info!("loading the text encoder");
                none.insert(family.text_encoder(&load(config)?).or_exit(Exit::Model)?)
            }
        };
        let embed = || -> anyhow::Result<Vec<Tensor>> {
            let embedded = conditioner.embed(text, picture.as_ref())?;
            let tensors = all_of(embedded.tensors())?;
            plan.text_form.check(&tensors)?;
            Ok(tensors)
        };
        let tensors = embed()
            .with_context(|| format!("the caption {text:?}"))
            .map_err(|error| explained(error, family, family.spec().text_encoder_parts))
            .or_exit(Exit::Model)?;
        let notes = [("caption", text.clone())];
        let written = plan.cache.write(key, &plan.text_form, &tensors, &notes);
        written.context(KEPT).or_exit(Exit::Training)?;
        Ok(match conditioner.truncated_tokens(text).or_exit(Exit::Model)? {
            0 => rounds::Encoded::Done,
            lost => rounds::Encoded::Shortened(lost),
        })
    };
    let mut shortened = Vec::new();
    let done = rounds::go_round(ranks, missing.len(), encode, |place, encoded| {
        if let rounds::Encoded::Shortened(lost) = encoded {
            shortened.push((missing[place].0.text.as_str(), lost));
        }
        count.step();
    });
    if ranks.is_first() {
        shortened::tell(plan, &shortened); // also before a failure: these are cached, and not reported again
    }
    done?;
    count.finish();
    Ok(())
}

/// Returns the picture (1, 3, H, W) of -1..1 that a text goes with; None for that of a clip that cannot be decoded, if its
/// data set allows that.
fn seen(config: &RunConfig, plan: &Plan, picture: &Picture) -> Result<Option<Tensor>, Failure> {
    let clip = match picture {
        Picture::File(path, [height, width]) => {
            let frame = sample::read(path, 1, (*height, *width)).or_exit(Exit::Data)?;
            return frame.squeeze(2).map(Some).or_exit(Exit::Data);
        }
        Picture::FirstFrame(key) => plan
            .clip(key)
            .context("a caption without its clip")
            .or_exit(Exit::Data)?,
    };
    match clip.cut.first_frame().decode(clip.sample) {
        Ok(frame) => {
            let frame = pixels::tensor(frame).and_then(|frame| frame.squeeze(2));
            frame.map(Some).or_exit(Exit::Data)
        }
        Err(_) if config.datasets[clip.sample.dataset].on_invalid_clip == OnInvalidClip::Skip => Ok(None),
        Err(error) => Err(error).or_exit(Exit::Data),
    }
}

/// Decodes ahead and encodes, clip by clip. Returns the keys of clips that could not be decoded, if their data sets
/// allow that.
fn encode_clips(
    config: &RunConfig,
    family: &dyn Family,
    load: &Load,
    plan: &Plan,
    stop: &AtomicBool,
    ranks: &dyn Communicator,
) -> Result<HashSet<Key>, Failure> {
    let mut lost = HashSet::new();
    if plan.missing_clips.is_empty() {
        return Ok(lost);
    }
    let missing: Vec<&ClipPlan> = plan.missing_clips().collect();
    let share = rounds::share(ranks, missing.len()).map(|place| missing[place]);
    let mut count = progress::Count::start("clips", missing.len());
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(AHEAD);
        let share: Vec<&ClipPlan> = share.collect();
        scope.spawn(move || {
            for clip in share {
                let decoded = clip.cut.decode(clip.sample);
                // The receiver is gone if encoding failed or was stopped.
                if stop.load(Ordering::Relaxed) || send.send(decoded).is_err() {
                    break;
                }
            }
        });
        let mut encoder: Option<Box<dyn VideoEncoder>> = None;
        let encode = |place: usize| -> Result<rounds::Encoded, Failure> {
            go_on(stop)?;
            let clip = missing[place];
            // Without a clip, it was just stopped.
            match receive.recv().map_err(|_| interrupted())? {
                Ok(_) if plan.cache.has_come(&clip.key, &clip.form) => Ok(rounds::Encoded::Done),
                Ok(frames) => {
                    let encoder = match &mut encoder {
                        Some(encoder) => encoder,
                        none => {
                            log::info!("loading the VAE's encoder");
                            none.insert(family.video_encoder(load).or_exit(Exit::Model)?)
                        }
                    };
                    let encoded = encode_clip(&**encoder, clip, frames);
                    let encoded = encoded.map_err(|error| explained(error, family, family.spec().video_encoder_parts));
                    keep_clip(plan, clip, &encoded.or_exit(Exit::Model)?).or_exit(Exit::Training)?;
                    Ok(rounds::Encoded::Done)
                }
                Err(error) if config.datasets[clip.sample.dataset].on_invalid_clip == OnInvalidClip::Skip => {
                    Ok(rounds::Encoded::Skipped(error.to_string()))
                }
                Err(error) => Err(error).or_exit(Exit::Data),
            }
        };
        let heard = |place: usize, encoded: rounds::Encoded| {
            if let rounds::Encoded::Skipped(why) = encoded {
                lost.insert(missing[place].key);
                if ranks.is_first() {
                    log::warn!("skipped: {why}");
                }
            }
            count.step();
        };
        let done = rounds::go_round(ranks, missing.len(), encode, heard);
        drop(receive); // stops the decoding threads
        done?;
        go_on(stop)?;
        count.finish();
        Ok(lost)
    })
}

/// Returns how the VAE loads. All ranks count on the same free memory, so that they agree on tiles: on a GPU the least
/// that one has, on the CPU an equal part for each.
fn vae_load(config: &RunConfig, ranks: &dyn Communicator) -> Result<Load, Failure> {
    let device = config.open_device().or_exit(Exit::Usage)?;
    let free = memory::least_free(&device, ranks).or_exit(Exit::Training)?;
    Ok(config.model.load(&device).with_vae(config.precompute.vae_memory(free)))
}

fn load(config: &RunConfig) -> Result<Load, Failure> {
    Ok(config.model.load(&config.open_device().or_exit(Exit::Usage)?))
}

/// Returns the tensors of a clip's record.
fn encode_clip(encoder: &dyn VideoEncoder, clip: &ClipPlan, frames: Frames) -> anyhow::Result<Vec<Tensor>> {
    let encode = || -> anyhow::Result<Vec<Tensor>> {
        let pixels = pixels::tensor(frames)?; // (1, 3, T, H, W)
        let whole = encoder.encode(&pixels)?;
        let mut tensors = all_of([&whole.mean, &whole.logvar])?;
        if clip.form.tensors.len() > tensors.len() {
            let (first, num_frames) = (pixels.get_on_dim(2, 0)?, pixels.dim(2)?);
            tensors.extend(all_of(&encoder.encode_image(&first, num_frames)?)?);
        }
        clip.form.check(&tensors)?;
        Ok(tensors)
    };
    encode().with_context(|| clip.sample.found.entry.name.clone())
}

fn keep_clip(plan: &Plan, clip: &ClipPlan, tensors: &[Tensor]) -> anyhow::Result<()> {
    let name = &clip.sample.found.entry.name;
    let notes = [("clip", name.to_string()), ("bucket", clip.sample.bucket.to_string())];
    plan.cache.write(&clip.key, &clip.form, tensors, &notes).context(KEPT)?;
    log::debug!("encoded {name}");
    Ok(())
}

/// Names the damaged weight behind a non-finite encoding, if there is one.
fn explained(error: anyhow::Error, family: &dyn Family, parts: &[&str]) -> anyhow::Error {
    if !error.is::<finite::NonfiniteTensor>() {
        return error;
    }
    let damage = parts.iter().find_map(|part| {
        let folder = family.spec().directory.part(part);
        checkpoint::not_finite(&folder).ok().flatten() // a part without weights cannot have damaged ones
    });
    match damage {
        Some(damage) => error.context(format!("{damage}; the file is damaged, fetch it again")),
        None => error.context("an encoding is not finite; try model.dtype: f32"),
    }
}

/// Concatenates tensors that are single in their batch.
fn all_of<'a>(batches: impl IntoIterator<Item = &'a Tensor>) -> anyhow::Result<Vec<Tensor>> {
    batches.into_iter().map(|batch| Ok(batch.squeeze(0)?)).collect()
}

fn go_on(stop: &AtomicBool) -> Result<(), Failure> {
    match stop.load(Ordering::Relaxed) {
        true => Err(interrupted()),
        false => Ok(()),
    }
}

fn interrupted() -> Failure {
    Failure {
        exit: Exit::Interrupted,
        error: anyhow!("interrupted; finished encodings are kept, and the next run resumes from there"),
    }
}

fn print_json(encoded: &Encoded) -> Result<(), Failure> {
    let samples = encoded.samples.iter().map(|sample| {
        json!({
            "video": sample.video.display().to_string(),
            "caption": sample.caption,
            "bucket": sample.bucket,
            "fps": sample.fps,
            "latents": encoded.clip_path(sample),
            "embeds": encoded.text_path(&encoded.caption_id(sample)),
        })
    });
    let whole = json!({
        "samples": samples.collect::<Vec<_>>(),
        "empty_caption": encoded.text_path(&"".into()),
    });
    let mut text = serde_json::to_string_pretty(&whole).or_exit(Exit::Training)?;
    text.push('\n');
    super::print(&text)
}
