//! The survey: every clip opened once, and given a bucket or a refusal, before anything is trained.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use super::bucket::{self, Bucket};
use super::dataset::{Config, Cropping, Frames, OnBadClip};
use super::manifest::{self, Entry};
use super::reason::Reason;
use super::refusal::{Refusal, Source};
use super::remarks;
use crate::video::{self, Clip, Crop, Fit, VideoError};

/// Told how many clips of a data set are done, and of how many.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// What a survey found, all in the manifests' order.
#[derive(Debug, Serialize)]
pub struct Report<T = Sample> {
    pub samples: Vec<T>,
    pub refused: Vec<Refusal>,
    /// What is used otherwise than one might think, or not at all.
    pub notes: Vec<String>,
}

/// A clip that can be read.
#[derive(Debug, Serialize)]
pub struct Found {
    #[serde(flatten)]
    pub entry: Entry,
    #[serde(flatten)]
    pub facts: Facts,
    #[serde(skip)]
    pub clip: Clip,
}

/// What a clip's file says of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Facts {
    pub width: usize,
    pub height: usize,
    pub num_frames: usize,
    pub fps: f64,
    /// In seconds.
    pub duration: f64,
    pub codec: String,
}

/// A clip with its place in training.
#[derive(Debug, Serialize)]
pub struct Sample {
    #[serde(flatten)]
    pub found: Found,
    pub bucket: Bucket,
    /// How the picture is brought to its bucket, in words.
    pub fit: String,
    /// Which of the configured data sets it belongs to.
    pub dataset: usize,
    pub repeats: usize,
    /// How its frames are picked, for the loader.
    #[serde(skip)]
    pub frames: Frames,
    #[serde(skip)]
    pub fps: Option<f64>,
    #[serde(skip)]
    pub crop: Cropping,
}

/// The sums below a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Totals {
    pub accepted: usize,
    pub refused: usize,
    pub frames: usize,
    pub seconds: f64,
    /// Samples in each bucket, without repeats; empty where there are no buckets.
    pub buckets: Vec<(Bucket, usize)>,
}

impl<T> Report<T> {
    /// Whether something refused keeps a run from starting.
    pub fn stops(&self) -> bool {
        self.refused.iter().any(|refusal| refusal.stops)
    }

    fn totals_of<'a>(&self, found: impl Iterator<Item = &'a Found>, buckets: Vec<(Bucket, usize)>) -> Totals {
        let (mut frames, mut seconds) = (0, 0.0);
        for facts in found.map(|found| &found.facts) {
            frames += facts.num_frames;
            seconds += facts.duration;
        }
        Totals {
            accepted: self.samples.len(),
            refused: self.refused.len(),
            frames,
            seconds,
            buckets,
        }
    }
}

impl Report<Sample> {
    pub fn totals(&self) -> Totals {
        let mut buckets = BTreeMap::new();
        for sample in &self.samples {
            *buckets.entry(sample.bucket).or_insert(0) += 1;
        }
        self.totals_of(self.samples.iter().map(|s| &s.found), buckets.into_iter().collect())
    }
}

impl Report<Found> {
    pub fn totals(&self) -> Totals {
        self.totals_of(self.samples.iter(), Vec::new())
    }
}

/// Opens every clip of the data sets, many at once; with `decode`, decodes every frame of each as
/// well, which finds damage that headers do not show.
pub fn survey(configs: &[Config], decode: bool, progress: Progress) -> Report {
    let mut report = Report {
        samples: Vec::new(),
        refused: Vec::new(),
        notes: Vec::new(),
    };
    for (dataset, config) in configs.iter().enumerate() {
        let mut problems = Vec::new();
        config.check("", &mut problems);
        let before = (report.samples.len(), report.refused.len());
        if problems.is_empty() {
            report.add(config, decode, progress, |found| Sample::place(found, dataset, config));
        }
        let refuse = |reason| Refusal::of_data_set(Source::file(&config.path), reason);
        report.refused.extend(
            problems
                .into_iter()
                .map(|(key, error)| refuse(Reason::BadConfig { key, error })),
        );
        report.settle(before, config);
    }
    report
}

/// Opens every clip of a folder, as [`survey()`] does, without buckets: only what can be read.
pub fn survey_folder(path: &Path, decode: bool, progress: Progress) -> Report<Found> {
    let mut report = Report {
        samples: Vec::new(),
        refused: Vec::new(),
        notes: Vec::new(),
    };
    let config = Config {
        path: path.to_owned(),
        ..Config::default()
    };
    report.add(&config, decode, progress, Ok);
    report.settle((0, 0), &config);
    report
}

impl<T: Send> Report<T> {
    fn add(
        &mut self,
        config: &Config,
        decode: bool,
        progress: Progress,
        place: impl Fn(Found) -> Result<T, Refusal> + Sync,
    ) {
        let listing = manifest::read(config);
        let (done, of) = (AtomicUsize::new(0), listing.items.len());
        progress(0, of);
        let inspect = |item: Result<Entry, Refusal>| {
            let placed = item.and_then(|entry| Found::open(entry, decode)).and_then(|found| {
                let said = (found.entry.name.clone(), found.clip.remarks().to_vec());
                Ok((place(found)?, said))
            });
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, of);
            placed
        };
        let inspected: Vec<_> = listing.items.into_par_iter().map(inspect).collect();
        let mut said = Vec::new();
        for item in inspected {
            match item {
                Ok((sample, remarks)) => {
                    self.samples.push(sample);
                    said.push(remarks);
                }
                Err(refusal) => self.refused.push(refusal),
            }
        }
        let named = |note| format!("{}: {note}", config.path.display());
        let notes = listing.notes.into_iter().chain(remarks::gathered(&said));
        self.notes.extend(notes.map(named));
    }

    /// Decides what the refusals of one data set mean for a run.
    fn settle(&mut self, (samples, refused): (usize, usize), config: &Config) {
        let refusals = &mut self.refused[refused..];
        // Where a fault of the whole data set is said, that nothing is left of it goes without saying.
        let said = refusals.iter().any(|refusal| refusal.stops);
        for refusal in refusals {
            refusal.stops |= config.on_bad_clip == OnBadClip::Error;
        }
        if self.samples.len() == samples && !said {
            self.refused
                .push(Refusal::of_data_set(Source::file(&config.path), Reason::NothingUsable));
        }
    }
}

impl Found {
    fn open(entry: Entry, decode: bool) -> Result<Found, Refusal> {
        let opened = Clip::open(&entry.video).and_then(|clip| {
            if decode {
                decode_all(&clip)?;
            }
            Ok(clip)
        });
        let clip = match opened {
            Ok(clip) => clip,
            Err(error) => {
                let reason = reason(&error, &entry.video);
                return Err(Refusal::of_clip(entry.name, entry.source, reason));
            }
        };
        let facts = Facts {
            width: clip.width(),
            height: clip.height(),
            num_frames: clip.num_frames(),
            fps: clip.fps(),
            duration: clip.duration(),
            codec: clip.codec().to_owned(),
        };
        Ok(Found { entry, facts, clip })
    }
}

/// Decodes in stretches, since a long clip does not fit into memory at once.
fn decode_all(clip: &Clip) -> Result<(), VideoError> {
    const AT_ONCE: usize = 256 << 20; // bytes
    let frame = clip.width().saturating_mul(clip.height()).saturating_mul(3);
    let stretch = (AT_ONCE / frame.max(1)).max(1);
    let frames: Vec<_> = (0..clip.num_frames()).collect();
    frames
        .chunks(stretch)
        .try_for_each(|stretch| clip.decode(stretch).map(drop))
}

fn reason(error: &VideoError, path: &Path) -> Reason {
    let text = error.to_string();
    let path = format!("{}: ", path.display());
    let text = text.strip_prefix(&path).unwrap_or(&text).to_owned(); // the refusal's source says it
    match error {
        VideoError::Missing { .. } => Reason::MissingFile { link_to: None },
        VideoError::Empty { .. } => Reason::EmptyFile,
        VideoError::Heif { .. } => Reason::Heif { error: text },
        VideoError::NoVideo { .. } => Reason::NoVideo { error: text },
        VideoError::Truncated { .. } => Reason::Truncated { error: text },
        VideoError::TooLarge { .. } => Reason::TooLarge { error: text },
        VideoError::Decode { .. } => Reason::Undecodable { error: text },
        _ => Reason::Unreadable { error: text },
    }
}

impl Sample {
    fn place(found: Found, dataset: usize, config: &Config) -> Result<Sample, Refusal> {
        let facts = &found.facts;
        let available = video::available(found.clip.timestamps(), facts.fps, config.fps);
        match bucket::choose(&config.buckets, available, facts.height, facts.width) {
            Some(bucket) => {
                let shown = (facts.height, facts.width);
                let fit = in_words(found.clip.stored_size(), shown, bucket, config.crop);
                let (frames, fps, crop) = (config.frames, config.fps, config.crop);
                Ok(Sample {
                    found,
                    bucket,
                    fit,
                    dataset,
                    repeats: config.repeats,
                    frames,
                    fps,
                    crop,
                })
            }
            None => {
                let zero = Bucket::from([0, 0, 0]); // there is always a bucket: `Config::check` has seen to it
                let shortest = bucket::shortest(&config.buckets).unwrap_or(zero);
                let reason = Reason::TooShort {
                    available,
                    frames: facts.num_frames,
                    fps: config.fps,
                    shortest,
                };
                Err(Refusal::of_clip(found.entry.name, found.entry.source, reason))
            }
        }
    }
}

/// `resized to 427x240, cut to 360x240 at the center`, as width x height. What is stored differs from what is shown where
/// pixels are not square.
fn in_words(stored: (usize, usize), shown: (usize, usize), bucket: Bucket, crop: Cropping) -> String {
    let to = (bucket.height, bucket.width);
    let size = |(height, width): (usize, usize)| format!("{width}x{height}");
    let fit = match crop {
        Cropping::Fit => Fit::squash(to),
        Cropping::Center | Cropping::Random => Fit::cover(shown, to, Crop::Center),
    };
    let resized = (fit.resize_height, fit.resize_width);
    let place = if crop == Cropping::Random {
        "at a random place"
    } else {
        "at the center"
    };
    match (resized != stored, resized != to) {
        (false, false) => format!("kept at {}", size(to)),
        (true, false) if crop == Cropping::Fit => format!("squeezed to {}, nothing cut", size(to)),
        (true, false) => format!("resized to {}", size(to)),
        (false, true) => format!("cut to {} {place}", size(to)),
        (true, true) => format!("resized to {}, cut to {} {place}", size(resized), size(to)),
    }
}
