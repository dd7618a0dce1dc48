//! The survey: opens every clip once, and gives it a bucket or a rejection, before training starts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use super::bucket::{self, Bucket};
use super::dataset::{Config, Cropping, Frames, OnInvalidClip};
use super::manifest::{self, Entry};
use super::reason::Reason;
use super::rejection::{Rejection, Source};
use super::remarks;
use crate::problems::Problems;
use crate::video::{self, Clip, Crop, Fit, VideoError};

/// Callback with the number of finished clips of a data set, and their total.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// Result of a survey, in the manifests' order.
#[derive(Debug, Serialize)]
pub struct Report<T = Sample> {
    /// Clips that can be used.
    pub samples: Vec<T>,
    /// Rejections: clips and lines that cannot be used.
    pub refused: Vec<Rejection>,
    /// Notes on items that are unused, or used in an unexpected way.
    pub notes: Vec<String>,
}

/// A clip that can be read.
#[derive(Debug, Serialize)]
pub struct Found {
    /// Line of the manifest.
    #[serde(flatten)]
    pub entry: Entry,
    /// Properties of the file.
    #[serde(flatten)]
    pub facts: Facts,
    /// The clip, ready to be decoded.
    #[serde(skip)]
    pub clip: Clip,
}

/// Properties of a clip's file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Facts {
    /// Columns of pixels, upright.
    pub width: usize,
    /// Rows of pixels, upright.
    pub height: usize,
    /// Frames in the file.
    pub num_frames: usize,
    /// Frames per second.
    pub fps: f64,
    /// Duration in seconds.
    pub duration: f64,
    /// Name of the codec.
    pub codec: String,
}

/// A clip with its place in training.
#[derive(Debug, Serialize)]
pub struct Sample {
    /// The clip.
    #[serde(flatten)]
    pub found: Found,
    /// Bucket that the clip is fitted to.
    pub bucket: Bucket,
    /// Fitting of the picture to its bucket, described for people.
    pub fit: String,
    /// Index of its data set.
    pub dataset: usize,
    /// Number of times the clip is seen in an epoch.
    pub repeats: usize,
    /// Selection of its frames, for the loader.
    #[serde(skip)]
    pub frames: Frames,
    /// Frames per second that the data set is read at; None for the file's own rate.
    #[serde(skip)]
    pub fps: Option<f64>,
    /// Part of the picture that is kept.
    #[serde(skip)]
    pub crop: Cropping,
}

/// Totals below a report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Totals {
    /// Clips that can be used.
    pub accepted: usize,
    /// Clips and lines that cannot be used.
    pub refused: usize,
    /// Frames of all clips that can be used.
    pub frames: usize,
    /// Duration of these frames.
    pub seconds: f64,
    /// Samples in each bucket, without repeats; empty without buckets.
    pub buckets: Vec<(Bucket, usize)>,
}

impl<T> Report<T> {
    /// Returns true if a rejection keeps a run from starting.
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
    /// Returns totals over the samples, each counted once.
    pub fn totals(&self) -> Totals {
        let mut buckets = BTreeMap::new();
        for sample in &self.samples {
            *buckets.entry(sample.bucket).or_insert(0) += 1;
        }
        self.totals_of(self.samples.iter().map(|s| &s.found), buckets.into_iter().collect())
    }
}

impl Report<Found> {
    /// Returns totals over the clips.
    pub fn totals(&self) -> Totals {
        self.totals_of(self.samples.iter(), Vec::new())
    }
}

/// Opens every clip of the data sets in parallel; with `decode`, decodes every frame of each as well, which finds
/// damage that headers do not show.
pub fn survey(configs: &[Config], decode: bool, progress: Progress) -> Report {
    let mut report = Report {
        samples: Vec::new(),
        refused: Vec::new(),
        notes: Vec::new(),
    };
    for (dataset, config) in configs.iter().enumerate() {
        let problems = Problems::of(|problems| config.check(problems));
        let before = (report.samples.len(), report.refused.len());
        if problems.is_empty() {
            report.add(config, decode, progress, |found| Sample::place(found, dataset, config));
        }
        let refuse = |reason| Rejection::of_data_set(Source::file(&config.path), reason);
        report.refused.extend(
            problems
                .into_iter()
                .map(|(key, error)| refuse(Reason::BadConfig { key, error })),
        );
        report.settle(before, config);
    }
    report
}

/// Opens every clip of a folder, as [`survey()`] does, without buckets: reports only readability.
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
        place: impl Fn(Found) -> Result<T, Rejection> + Sync,
    ) {
        let listing = manifest::read(config);
        let (done, of) = (AtomicUsize::new(0), listing.items.len());
        progress(0, of);
        let inspect = |item: Result<Entry, Rejection>| {
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

    /// Decides the effect of a data set's rejections on a run.
    fn settle(&mut self, (samples, refused): (usize, usize), config: &Config) {
        let refusals = &mut self.refused[refused..];
        // If a problem of the whole data set is reported, the lack of clips need not be.
        let said = refusals.iter().any(|refusal| refusal.stops);
        for refusal in refusals {
            refusal.stops |= config.on_invalid_clip == OnInvalidClip::Error;
        }
        if self.samples.len() == samples && !said {
            self.refused.push(Rejection::of_data_set(
                Source::file(&config.path),
                Reason::NothingUsable,
            ));
        }
    }
}

impl Found {
    fn open(entry: Entry, decode: bool) -> Result<Found, Rejection> {
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
                return Err(Rejection::of_clip(entry.name, entry.source, reason));
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

/// Bytes of pictures that are decoded at once: a long clip does not fit into memory.
const AT_ONCE: usize = 256 << 20;

fn decode_all(clip: &Clip) -> Result<(), VideoError> {
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
    let text = text.strip_prefix(&path).unwrap_or(&text).to_owned(); // already in the rejection's source
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
    fn place(found: Found, dataset: usize, config: &Config) -> Result<Sample, Rejection> {
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
                let zero = Bucket::from([0, 0, 0]); // there is always a bucket: see `Config::check`
                let shortest = bucket::shortest(&config.buckets).unwrap_or(zero);
                let reason = Reason::TooShort {
                    available,
                    frames: facts.num_frames,
                    fps: config.fps,
                    shortest,
                };
                Err(Rejection::of_clip(found.entry.name, found.entry.source, reason))
            }
        }
    }
}

/// Returns `resized to 427x240, cut to 360x240 at the center`, as width x height. Stored and displayed sizes differ for
/// pixels that are not square.
fn in_words(stored: (usize, usize), shown: (usize, usize), bucket: Bucket, crop: Cropping) -> String {
    let to = (bucket.height, bucket.width);
    let size = |(height, width): (usize, usize)| format!("{width}x{height}");
    let fit = match crop {
        Cropping::Fit => Fit::squash(to),
        Cropping::Center | Cropping::Random => Fit::cover(shown, to, Crop::Center),
    };
    let resized = (fit.resize_height, fit.resize_width);
    let place = if crop == Cropping::Random {
        "at a random position"
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
