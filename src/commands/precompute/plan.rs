//! What a run needs of the cache, and what of it is missing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow};
use indicatif::BinaryBytes;
use rayon::prelude::*;

use super::interrupted;
use crate::commands::{Exit, Failure, OrExit, progress, ranks};
use crate::config::RunConfig;
use crate::data::cache::{self, Cache, CaptionCoder, ClipCoder, Encoded, Encoding, Form, Key};
use crate::data::loader::Cut;
use crate::data::{Bucket, Report, Sample};
use crate::dist::Communicator;
use crate::models::family::TakesImage;
use crate::models::{self, Family};
use crate::nn::WeightFolder;

/// All clips and captions of a run, with their places in the cache.
pub struct Plan<'a> {
    pub cache: Cache,
    /// One for each sample of the survey.
    clips: Vec<ClipPlan<'a>>,
    /// Those without a record, each key once.
    pub missing_clips: Vec<usize>,
    /// Each distinct text once.
    texts: Vec<(String, Key)>,
    pub missing_texts: Vec<usize>,
    pub text_form: Form,
    /// Length of every embedded text, in tokens.
    pub tokens: usize,
}

/// A clip to be encoded.
#[derive(Debug, Clone)]
pub struct ClipPlan<'a> {
    pub sample: &'a Sample,
    pub cut: Cut,
    pub key: Key,
    pub form: Form,
}

impl<'a> Plan<'a> {
    /// Hashes what has to be, and looks what is there. Nothing is loaded.
    pub fn make(
        config: &RunConfig,
        family: &dyn Family,
        report: &'a Report,
        more_prompts: &[&str],
        stop: &AtomicBool,
    ) -> Result<Self, Failure> {
        let forms = forms(family, &report.samples)?;
        let cache = Cache::open(&config.precompute.folder(&config.output_dir));
        let coder = CaptionCoder {
            fingerprint: fingerprint(&cache, family.directory(), family.conditioner_parts())?,
            dtype: config.model.dtype.into(),
            tokens: family.text_shape().tokens,
        };
        let text_form = Form::caption(family.text_shape().kept(), coder.dtype);
        let texts: Vec<(String, Key)> = distinct_texts(config, report, more_prompts)
            .into_iter()
            .map(|text| (text.to_string(), Key::caption(text, &coder)))
            .collect();
        let coder = ClipCoder {
            fingerprint: fingerprint(&cache, family.directory(), family.encoder_parts())?,
            dtype: config.model.dtype.into(),
            tiling: config.precompute.vae_tiling,
            image: family.takes_image() == TakesImage::Always,
        };
        let clips = clips(&cache, &report.samples, &forms, &coder, config.seed, stop)?;
        let text_keys: Vec<_> = texts.iter().map(|(_, key)| (*key, &text_form)).collect();
        let clip_keys: Vec<_> = clips.iter().map(|clip| (clip.key, &clip.form)).collect();
        let (missing_texts, missing_clips) = (missing(&cache, &text_keys)?, missing(&cache, &clip_keys)?);
        cache.save();
        Ok(Self {
            cache,
            clips,
            missing_clips,
            texts,
            missing_texts,
            text_form,
            tokens: family.text_shape().tokens,
        })
    }

    /// The same plan on all ranks: rank 0 makes it first, and what it misses is missing. The others find its hashes; the
    /// larger clips come first, so that those who encode at the same time have equal work.
    pub fn make_together(
        ranks: &dyn Communicator,
        make: impl FnOnce() -> Result<Self, Failure>,
    ) -> Result<Self, Failure> {
        if ranks.world_size() == 1 {
            return make();
        }
        let mut plan = ranks::first_alone(ranks, make)?;
        let mut hasher = blake3::Hasher::new();
        let keys = plan
            .clips
            .iter()
            .map(|clip| &clip.key)
            .chain(plan.texts.iter().map(|(_, key)| key));
        for key in keys {
            hasher.update(key.hash().as_bytes());
        }
        ranks::agree(ranks, "clips and captions", hasher.finalize())?;
        let clips = &plan.clips;
        plan.missing_clips
            .sort_by_key(|&place| Reverse(clips[place].form.bytes()));
        let missing = serde_json::to_vec(&(&plan.missing_clips, &plan.missing_texts)).or_exit(Exit::Training)?;
        let missing = ranks.broadcast(missing).or_exit(Exit::Training)?;
        (plan.missing_clips, plan.missing_texts) = serde_json::from_slice(&missing).or_exit(Exit::Training)?;
        Ok(plan)
    }

    /// Says what will be done and how much room it takes.
    pub fn announce(&self) {
        let clips = self.clips.iter().map(|clip| clip.key).collect::<HashSet<_>>().len();
        let texts = self.texts.len();
        let (more_clips, more_texts) = (self.missing_clips.len(), self.missing_texts.len());
        let dir = self.cache.dir().display();
        if more_clips + more_texts == 0 {
            log::info!(
                "all {clips} clips and {texts} captions are in the cache {dir}; the text encoder and the VAE are not loaded"
            );
            return;
        }
        let latents: u64 = self.missing_clips().map(|clip| clip.form.bytes()).sum();
        let embeds = more_texts as u64 * self.text_form.bytes();
        log::info!(
            "{} of {clips} clips and {} of {texts} captions are in the cache {dir}",
            clips - more_clips,
            texts - more_texts
        );
        log::info!(
            "the rest will take {}: {} for {more_clips} clips, {} for {more_texts} captions",
            BinaryBytes(latents + embeds),
            BinaryBytes(latents),
            BinaryBytes(embeds)
        );
    }

    /// Checks that what has to encode is there: a part that is gone is only missed where something is left to encode.
    pub fn ensure_parts(&self, family: &dyn Family) -> Result<(), Failure> {
        let texts = (!self.missing_texts.is_empty()).then(|| family.conditioner_parts());
        let clips = (!self.missing_clips.is_empty()).then(|| family.encoder_parts());
        let parts = texts.into_iter().chain(clips).flatten();
        let gone = parts.filter_map(|part| models::part(family.directory(), part).err());
        let gone: Vec<String> = gone.map(|error| error.to_string()).collect();
        match gone.is_empty() {
            true => Ok(()),
            false => Err(anyhow!(gone.join("\n"))).or_exit(Exit::Model),
        }
    }

    /// Whether all that is missing fits on the disk.
    pub fn ensure_room(&self) -> Result<(), Failure> {
        if self.missing_clips.is_empty() && self.missing_texts.is_empty() {
            return Ok(());
        }
        let texts = self.missing_texts.iter().map(|_| &self.text_form);
        let forms = self.missing_clips().map(|clip| &clip.form).chain(texts);
        self.cache.ensure_room(forms).or_exit(Exit::Training)
    }

    /// The number of texts, the empty one among them.
    pub fn texts(&self) -> usize {
        self.texts.len()
    }

    /// The first clip with this caption.
    pub fn clip_of(&self, caption: &str) -> Option<&Sample> {
        let mut samples = self.clips.iter().map(|clip| clip.sample);
        samples.find(|sample| sample.found.entry.caption == caption)
    }

    pub fn missing_clips(&self) -> impl Iterator<Item = &ClipPlan<'a>> {
        self.missing_clips.iter().map(|&place| &self.clips[place])
    }

    pub fn missing_texts(&self) -> impl Iterator<Item = &(String, Key)> {
        self.missing_texts.iter().map(|&place| &self.texts[place])
    }

    /// What was planned, now that it is there, without the clips in `lost`.
    pub fn fulfilled(self, lost: &HashSet<Key>) -> Encoded {
        let kept = self.clips.into_iter().filter(|clip| !lost.contains(&clip.key));
        let samples = kept
            .map(|clip| Encoding {
                video: clip.sample.found.entry.video.clone(),
                caption: clip.sample.found.entry.caption.clone(),
                bucket: clip.sample.bucket,
                repeats: clip.sample.repeats,
                fps: clip.cut.fps,
                key: clip.key,
                form: clip.form,
            })
            .collect();
        Encoded {
            cache: self.cache,
            samples,
            texts: self.texts.into_iter().collect::<HashMap<_, _>>(),
            text_form: self.text_form,
        }
    }
}

/// The form of a clip's record in each bucket that has clips.
fn forms(family: &dyn Family, samples: &[Sample]) -> Result<BTreeMap<Bucket, Form>, Failure> {
    let (mut forms, mut wrong) = (BTreeMap::new(), Vec::new());
    let buckets: std::collections::BTreeSet<Bucket> = samples.iter().map(|sample| sample.bucket).collect();
    for bucket in buckets {
        match family.canvas(bucket.frames, bucket.height, bucket.width) {
            Ok(canvas) => {
                forms.insert(bucket, Form::clip(canvas.encoded(), family.image_kept(&canvas)));
            }
            Err(error) => wrong.push(format!("the bucket {bucket}: {error:#}")),
        }
    }
    match wrong.is_empty() {
        true => Ok(forms),
        false => Err(Failure::usage(anyhow!(wrong.join("\n")))),
    }
}

/// Every text that a run will want, once, in the order of its first use.
fn distinct_texts<'t>(config: &'t RunConfig, report: &'t Report, more_prompts: &[&'t str]) -> Vec<&'t str> {
    let captions = report.samples.iter().map(|sample| sample.found.entry.caption.as_str());
    let prompts = config.validation.prompts.iter();
    let prompts = prompts.flat_map(|prompt| [prompt.prompt.as_str(), prompt.negative_prompt.as_str()]);
    let mut seen = HashSet::new();
    let all = captions.chain([""]).chain(prompts).chain(more_prompts.iter().copied());
    all.filter(|text| seen.insert(*text)).collect()
}

fn fingerprint(cache: &Cache, directory: &WeightFolder, parts: &[&str]) -> Result<blake3::Hash, Failure> {
    cache.fingerprint(directory, parts).or_exit(Exit::Model)
}

/// Every sample's cut and key, in order; files that have not changed are not read again.
fn clips<'a>(
    cache: &Cache,
    samples: &'a [Sample],
    forms: &BTreeMap<Bucket, Form>,
    coder: &ClipCoder,
    seed: u64,
    stop: &AtomicBool,
) -> Result<Vec<ClipPlan<'a>>, Failure> {
    let bar = progress::bar("clips hashed", samples.len());
    let plan = |sample: &'a Sample| {
        if stop.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        let video = &sample.found.entry.video;
        let content = cache.hash(video).with_context(|| video.display().to_string());
        let content = content.or_exit(Exit::Data)?;
        let cut = Cut::draw(sample, &mut cache::rng(seed, content)).or_exit(Exit::Data)?;
        bar.inc(1);
        Ok(ClipPlan {
            sample,
            key: Key::clip(content, &cut, coder),
            cut,
            form: forms[&sample.bucket].clone(),
        })
    };
    let clips = samples.par_iter().map(plan).collect();
    bar.finish_and_clear();
    clips
}

/// The places of records that are not there or damaged; of equal ones the first.
fn missing(cache: &Cache, wanted: &[(Key, &Form)]) -> Result<Vec<usize>, Failure> {
    let mut seen = HashSet::new();
    let distinct: Vec<usize> = (0..wanted.len()).filter(|&i| seen.insert(wanted[i].0)).collect();
    let absent = |&i: &usize| {
        let (key, form) = &wanted[i];
        Ok((!cache.holds(key, form).or_exit(Exit::Training)?).then_some(i))
    };
    let absent: Result<Vec<Option<usize>>, Failure> = distinct.par_iter().map(absent).collect();
    Ok(absent?.into_iter().flatten().collect())
}
