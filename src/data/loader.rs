//! Samples as pixels: frames selected, resized and cropped to their bucket.

use std::fmt;

use rayon::prelude::*;

use super::dataset::{Cropping, Frames as Picking};
use super::survey::Sample;
use crate::rng::Rng;
use crate::video::{self, Crop, Fit, Frames, Select, VideoError};

/// Selection from a clip: its frames, and a part of the picture.
#[derive(Debug, Clone)]
pub struct ClipSelection {
    /// Indices of the selected frames, in order.
    pub frames: Vec<usize>,
    /// Resizing and cropping to the bucket.
    pub fit: Fit,
    /// Frames per second of the selected frames.
    pub fps: f64,
    /// EXIF orientation (1 to 8), if the picture has one.
    pub orientation: Option<u32>,
}

/// A clip that could be read by the survey and no longer can.
#[derive(Debug)]
pub struct LoadError {
    /// Name of the clip.
    pub name: String,
    /// Cause of the failure.
    pub cause: Cause,
}

/// Reason why a clip can no longer be read.
#[derive(Debug)]
pub enum Cause {
    /// Fewer frames than the bucket asks for.
    TooShort,
    /// The file cannot be decoded.
    Video(VideoError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        match &self.cause {
            Cause::TooShort => write!(f, "has fewer frames than its bucket; run check-dataset"),
            Cause::Video(error) => {
                write!(f, "{error}; has the file changed since the run started?")
            }
        }
    }
}

impl std::error::Error for LoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::TooShort => None,
            Cause::Video(error) => Some(error),
        }
    }
}

impl ClipSelection {
    /// Returns the same cut of the first frame alone.
    pub fn first_frame(&self) -> ClipSelection {
        ClipSelection {
            frames: self.frames.iter().take(1).copied().collect(),
            ..self.clone()
        }
    }

    /// Draws from `rng` in this order: the start of the frames, with `frames: random`; x and y of the crop, with `crop:
    /// random`. Otherwise nothing is drawn.
    pub fn draw(sample: &Sample, rng: &mut Rng) -> Result<ClipSelection, LoadError> {
        let mut one = || f64::from(rng.rand(1)[0]);
        let how = match sample.frames {
            Picking::Uniform => Select::Uniform,
            Picking::Head => Select::Head,
            Picking::Random => Select::Random { at: one() },
        };
        let (clip, bucket) = (&sample.found.clip, sample.bucket);
        let (from, to) = ((clip.height(), clip.width()), (bucket.height, bucket.width));
        let fit = match sample.crop {
            Cropping::Center => Fit::cover(from, to, Crop::Center),
            Cropping::Random => Fit::cover(from, to, Crop::Random { x: one(), y: one() }),
            Cropping::Fit => Fit::squash(to),
        };
        let frames = video::select(clip.timestamps(), clip.fps(), how, sample.fps, bucket.frames);
        let fps = video::rate(clip.timestamps(), clip.fps(), how, sample.fps, bucket.frames);
        Ok(ClipSelection {
            frames: frames.ok_or_else(|| failed(sample, Cause::TooShort))?,
            fit,
            fps,
            orientation: clip.own_orientation(),
        })
    }

    /// Decodes and fits the frames of a clip: (F, H, W, 3), 8 bits a channel.
    ///
    /// # Errors
    /// Fails for a clip that changed or vanished since the survey.
    pub fn decode(&self, sample: &Sample) -> Result<Frames, LoadError> {
        let decoded = sample.found.clip.decode_fitted(&self.frames, &self.fit);
        decoded.map_err(|error| failed(sample, Cause::Video(error)))
    }
}

/// Loads the frames of a sample, in its bucket's shape.
pub fn load(sample: &Sample, rng: &mut Rng) -> Result<Frames, LoadError> {
    ClipSelection::draw(sample, rng)?.decode(sample)
}

/// Loads the frames of several samples, decoded in parallel. The draws are made in order, so they do not depend on the
/// number of threads.
pub fn load_all(samples: &[&Sample], rng: &mut Rng) -> Result<Vec<Frames>, LoadError> {
    let cuts = samples
        .iter()
        .map(|sample| ClipSelection::draw(sample, rng))
        .collect::<Result<Vec<_>, _>>()?;
    cuts.par_iter()
        .zip(samples)
        .map(|(cut, sample)| cut.decode(sample))
        .collect()
}

fn failed(sample: &Sample, cause: Cause) -> LoadError {
    LoadError {
        name: sample.found.entry.video.display().to_string(),
        cause,
    }
}
