//! Samples as pixels: frames picked, resized and cut to their bucket.

use std::fmt;

use rayon::prelude::*;

use super::dataset::{Cropping, Frames as Picking};
use super::survey::Sample;
use crate::rng::Rng;
use crate::video::{self, Crop, Fit, Frames, Select, VideoError};

/// What is taken of a clip: which frames, and which part of the picture.
#[derive(Debug, Clone)]
pub struct Cut {
    pub frames: Vec<usize>,
    pub fit: Fit,
    /// Frames a second of those that are taken.
    pub fps: f64,
    /// EXIF's number (1 to 8) of how the picture is turned, where it says so itself.
    pub orientation: Option<u32>,
}

/// A clip that could be read when it was surveyed and no longer can.
#[derive(Debug)]
pub struct LoadError {
    pub name: String,
    pub cause: Cause,
}

#[derive(Debug)]
pub enum Cause {
    /// Fewer frames than the bucket asks for.
    TooShort,
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

impl Cut {
    /// Drawn from `rng` in this order: where the stretch of frames starts, if `frames: random`; x and
    /// y of the part that is kept, if `crop: random`. Otherwise nothing is drawn.
    pub fn draw(sample: &Sample, rng: &mut Rng) -> Result<Cut, LoadError> {
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
        Ok(Cut {
            frames: frames.ok_or_else(|| failed(sample, Cause::TooShort))?,
            fit,
            fps,
            orientation: clip.own_orientation(),
        })
    }

    pub fn decode(&self, sample: &Sample) -> Result<Frames, LoadError> {
        let decoded = sample.found.clip.decode_fitted(&self.frames, &self.fit);
        decoded.map_err(|error| failed(sample, Cause::Video(error)))
    }
}

/// The frames of a sample, of its bucket's shape.
pub fn load(sample: &Sample, rng: &mut Rng) -> Result<Frames, LoadError> {
    Cut::draw(sample, rng)?.decode(sample)
}

/// The frames of several samples, decoded at once. The draws are made one sample after the other, so
/// they do not depend on how many threads there are.
pub fn load_all(samples: &[&Sample], rng: &mut Rng) -> Result<Vec<Frames>, LoadError> {
    let cuts = samples
        .iter()
        .map(|sample| Cut::draw(sample, rng))
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
