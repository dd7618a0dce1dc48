//! Plan of precomputing: the records a run needs, and which of them are missing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow};
use indicatif::BinaryBytes;
use rayon::prelude::*;

use super::interrupted;
use super::tiles::{self, TileNames};
use crate::commands::text_records::TextRecords;
use crate::commands::{Exit, Failure, OrExit, progress, ranks};
use crate::config::RunConfig;
use crate::data::cache::{self, Cache, Encoded, EncodedTiles, EncoderId, Encoding, Key, Picture, RecordSchema, TextId};
use crate::data::loader::ClipSelection;
use crate::data::{Bucket, Report, Sample};
use crate::distributed::Communicator;
use crate::models::family::ImageMode;
use crate::models::{self, Family};
use crate::nn::{Load, WeightFolder};

/// All clips and captions of a run, with their cache records.
pub struct Plan<'a> {
    pub cache: Cache,
    /// One entry per sample of the survey.
    clips: Vec<ClipPlan<'a>>,
    /// Clips without a record, each key once.
    pub missing_clips: Vec<usize>,
    /// Distinct texts.
    texts: Vec<(TextId, Key)>,
    pub missing_texts: Vec<usize>,
    pub text_form: RecordSchema,
    sees_pictures: bool,
    /// Length of every embedded text, in tokens.
    pub tokens: usize,
}

/// A clip to be encoded.
#[derive(Debug, Clone)]
pub struct ClipPlan<'a> {
    pub sample: &'a Sample,
    pub cut: ClipSelection,
    pub key: Key,
    pub form: RecordSchema,
}

impl<'a> Plan<'a> {
    /// Hashes the clips as needed, and checks for their records. Loads nothing; `load` says how the VAE will be loaded.
    pub fn make(
        config: &RunConfig,
        family: &dyn Family,
        load: &Load,
        report: &'a Report,
        more_prompts: &[&str],
        stop: &AtomicBool,
    ) -> Result<Self, Failure> {
        let forms = forms(family, &report.samples)?;
        let cache = Cache::open(&config.precompute.folder(&config.run_dir()));
        let (dtype, quantization) = (config.model.dtype.into(), &config.model.text_encoder_quantization);
        let records = TextRecords::of(&cache, family, dtype, quantization.form()).or_exit(Exit::Model)?;
        let coder = EncoderId {
            fingerprint: fingerprint(&cache, &family.spec().directory, family.spec().video_encoder_parts)?,
            dtype: config.model.dtype.into(),
            tiling: EncodedTiles::Some(false),
            image: family.spec().image_mode == ImageMode::Always,
        };
        let tiles = tiles::of_buckets(family, load, &cache, forms.keys())?;
        let names = Names { coder, tiles };
        let clips = clips(&cache, &report.samples, &forms, &names, config.seed, stop)?;
        let sees_pictures = family.spec().sees_pictures;
        let texts = match sees_pictures {
            true => texts_with_pictures(config, &clips, more_prompts),
            false => distinct_texts(config, report, more_prompts),
        };
        let key = |text: TextId| {
            let key = records.key(&cache, &text).or_exit(Exit::Data)?;
            Ok((text, key))
        };
        let texts: Vec<(TextId, Key)> = texts.into_iter().map(key).collect::<Result<_, Failure>>()?;
        let text_keys: Vec<_> = texts.iter().map(|(_, key)| (*key, &records.form)).collect();
        let clip_keys: Vec<_> = clips.iter().map(|clip| (clip.key, &clip.form)).collect();
        let (missing_texts, missing_clips) = (missing(&cache, &text_keys)?, missing(&cache, &clip_keys)?);
        cache.save();
        Ok(Self {
            cache,
            clips,
            missing_clips,
            texts,
            missing_texts,
            text_form: records.form,
            sees_pictures,
            tokens: family.spec().text().tokens,
        })
    }

    /// Makes the same plan on all ranks: rank 0 first, and its missing items count. The others reuse its hashes. Larger
    /// clips come first, so that ranks that encode at the same time have equal work.
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
        ranks::check_consistent(ranks, "clips and captions", hasher.finalize())?;
        let clips = &plan.clips;
        plan.missing_clips
            .sort_by_key(|&place| Reverse(clips[place].form.bytes()));
        let missing = serde_json::to_vec(&(&plan.missing_clips, &plan.missing_texts)).or_exit(Exit::Training)?;
        let missing = ranks.broadcast(missing).or_exit(Exit::Training)?;
        (plan.missing_clips, plan.missing_texts) = serde_json::from_slice(&missing).or_exit(Exit::Training)?;
        Ok(plan)
    }

    /// Logs the work to be done and its size.
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

    /// Checks that the encoding parts exist, if something is left to encode.
    pub fn ensure_parts(&self, family: &dyn Family) -> Result<(), Failure> {
        let texts = (!self.missing_texts.is_empty()).then(|| family.spec().text_encoder_parts);
        let clips = (!self.missing_clips.is_empty()).then(|| family.spec().video_encoder_parts);
        let parts = texts.into_iter().chain(clips).flatten();
        let gone = parts.filter_map(|part| models::part(&family.spec().directory, part).err());
        let gone: Vec<String> = gone.map(|error| error.to_string()).collect();
        match gone.is_empty() {
            true => Ok(()),
            false => Err(anyhow!(gone.join("\n"))).or_exit(Exit::Model),
        }
    }

    /// Checks that the missing records fit on the disk.
    pub fn ensure_room(&self) -> Result<(), Failure> {
        if self.missing_clips.is_empty() && self.missing_texts.is_empty() {
            return Ok(());
        }
        let texts = self.missing_texts.iter().map(|_| &self.text_form);
        let forms = self.missing_clips().map(|clip| &clip.form).chain(texts);
        self.cache.ensure_room(forms).or_exit(Exit::Training)
    }

    /// Returns the clip with this record.
    pub fn clip(&self, key: &Key) -> Option<&ClipPlan<'a>> {
        self.clips.iter().find(|clip| clip.key == *key)
    }

    /// Returns the number of texts, including the empty one.
    pub fn texts(&self) -> usize {
        self.texts.len()
    }

    /// Returns the first clip with this caption.
    pub fn clip_of(&self, caption: &str) -> Option<&Sample> {
        let mut samples = self.clips.iter().map(|clip| clip.sample);
        samples.find(|sample| sample.found.entry.caption == caption)
    }

    pub fn missing_clips(&self) -> impl Iterator<Item = &ClipPlan<'a>> {
        self.missing_clips.iter().map(|&place| &self.clips[place])
    }

    pub fn missing_texts(&self) -> impl Iterator<Item = &(TextId, Key)> {
        self.missing_texts.iter().map(|&place| &self.texts[place])
    }

    /// Returns the encoded data after the work is done, without the clips in `lost`.
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
            sees_pictures: self.sees_pictures,
        }
    }
}

/// Returns the schema of a clip's record for each bucket in use.
fn forms(family: &dyn Family, samples: &[Sample]) -> Result<BTreeMap<Bucket, RecordSchema>, Failure> {
    let (mut forms, mut wrong) = (BTreeMap::new(), Vec::new());
    let buckets: std::collections::BTreeSet<Bucket> = samples.iter().map(|sample| sample.bucket).collect();
    for bucket in buckets {
        match family.latent_size(bucket.frames, bucket.height, bucket.width) {
            Ok(canvas) => {
                forms.insert(
                    bucket,
                    RecordSchema::clip(canvas.encoded(), family.spec().image_record.tensors(&canvas)),
                );
            }
            Err(error) => wrong.push(format!("the bucket {bucket}: {error:#}")),
        }
    }
    match wrong.is_empty() {
        true => Ok(forms),
        false => Err(Failure::usage(anyhow!(wrong.join("\n")))),
    }
}

/// Returns every text that a run needs, once, in the order of its first use.
fn distinct_texts(config: &RunConfig, report: &Report, more_prompts: &[&str]) -> Vec<TextId> {
    let captions = report.samples.iter().map(|sample| sample.found.entry.caption.as_str());
    let prompts = config.validation.prompts.iter();
    let prompts = prompts.flat_map(|prompt| [prompt.prompt.as_str(), prompt.negative_prompt.as_str()]);
    let mut seen = HashSet::new();
    let all = captions.chain([""]).chain(prompts).chain(more_prompts.iter().copied());
    all.filter(|text| seen.insert(*text)).map(TextId::from).collect()
}

/// Same for encoders that see pictures: each caption with its clip's first frame, and each validation prompt with its image.
fn texts_with_pictures(config: &RunConfig, clips: &[ClipPlan], more_prompts: &[&str]) -> Vec<TextId> {
    let captions = clips.iter().map(|clip| TextId {
        text: clip.sample.found.entry.caption.clone(),
        picture: Some(Picture::FirstFrame(clip.key)),
    });
    let prompts = config.validation.prompts.iter();
    let prompts = prompts.flat_map(|prompt| [prompt.text_id(true), prompt.negative_prompt.as_str().into()]);
    let mut seen = HashSet::new();
    let more = more_prompts.iter().map(|prompt| TextId::from(*prompt));
    let all = captions.chain([TextId::from("")]).chain(prompts).chain(more);
    all.filter(|text| seen.insert(text.clone())).collect()
}

fn fingerprint(cache: &Cache, directory: &WeightFolder, parts: &[&str]) -> Result<blake3::Hash, Failure> {
    cache.fingerprint(directory, parts).or_exit(Exit::Model)
}

/// Facts that the names of clips' records depend on besides the clips.
struct Names {
    coder: EncoderId,
    tiles: BTreeMap<Bucket, TileNames>,
}

impl Names {
    /// Returns the key of a clip: of its record that is there already, or of the one to be made.
    fn key(
        &self,
        cache: &Cache,
        (bucket, form): (Bucket, &RecordSchema),
        key: impl Fn(&EncoderId) -> Key,
    ) -> Result<Key, Failure> {
        let TileNames { made, accepted } = &self.tiles[&bucket];
        let key = |tiling: &EncodedTiles| {
            key(&EncoderId {
                tiling: tiling.clone(),
                ..self.coder.clone()
            })
        };
        for key in accepted.iter().map(key) {
            if cache.holds(&key, form).or_exit(Exit::Training)? {
                return Ok(key);
            }
        }
        Ok(key(made))
    }
}

/// Returns every sample's selection and key, in order; unchanged files are not read again.
fn clips<'a>(
    cache: &Cache,
    samples: &'a [Sample],
    forms: &BTreeMap<Bucket, RecordSchema>,
    names: &Names,
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
        let cut = ClipSelection::draw(sample, &mut cache::rng(seed, content)).or_exit(Exit::Data)?;
        let form = &forms[&sample.bucket];
        let key = names.key(cache, (sample.bucket, form), |coder| Key::clip(content, &cut, coder))?;
        bar.inc(1);
        Ok(ClipPlan {
            sample,
            key,
            cut,
            form: form.clone(),
        })
    };
    let clips = samples.par_iter().map(plan).collect();
    bar.finish_and_clear();
    clips
}

/// Returns the indices of records that are missing or damaged; of equal keys the first.
fn missing(cache: &Cache, wanted: &[(Key, &RecordSchema)]) -> Result<Vec<usize>, Failure> {
    let mut seen = HashSet::new();
    let distinct: Vec<usize> = (0..wanted.len()).filter(|&i| seen.insert(wanted[i].0)).collect();
    let absent = |&i: &usize| {
        let (key, form) = &wanted[i];
        Ok((!cache.holds(key, form).or_exit(Exit::Training)?).then_some(i))
    };
    let absent: Result<Vec<Option<usize>>, Failure> = distinct.par_iter().map(absent).collect();
    Ok(absent?.into_iter().flatten().collect())
}
