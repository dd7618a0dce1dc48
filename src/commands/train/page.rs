//! The run's page, kept up while it trains. The page is a service: what goes wrong with it is told of, and training goes
//! on.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::open::Parts;
use crate::report::about::{About, Clip};
use crate::report::thumbnails::{self, Maker, Thumbnail};
use crate::report::{self, Environment, PAGE, Run};

/// Between two pages, without an occasion.
const BETWEEN: Duration = Duration::from_secs(30);

/// A page may take one part in so many of the run's time.
const SHARE: u32 = 100;

/// The page of a run on its way.
pub struct Page {
    folder: PathBuf,
    next: Instant,
    thumbnails: Option<Maker>,
}

impl Page {
    /// Notes what only training knows, and begins with the clips' thumbnails beside it.
    pub fn start(parts: &Parts, steps: u64) -> Self {
        let folder = parts.config.output_dir.clone();
        if let Err(error) = about(parts, steps).write(&folder) {
            log::warn!("the page will lack the clips: {error:#}");
        }
        let thumbnails = Maker::start(&folder, wanted(parts));
        Self {
            folder,
            next: Instant::now(),
            thumbnails: Some(thumbnails),
        }
    }

    /// Writes the page, unless that was done a moment ago.
    pub fn keep_up(&mut self) {
        if Instant::now() >= self.next {
            self.write();
        }
    }

    /// Writes the page. Returns whether it is there.
    pub fn write(&mut self) -> bool {
        let started = Instant::now();
        let file = self.folder.join(PAGE);
        let written = Run::read(&self.folder).and_then(|run| report::write(&[run], &file));
        self.next = Instant::now() + BETWEEN.max(started.elapsed() * SHARE);
        written
            .inspect_err(|error| log::warn!("the page is not written, training goes on: {error:#}"))
            .is_ok()
    }

    /// Writes the last page of a session; with all pictures where the run is complete.
    pub fn finish(mut self, complete: bool) {
        if let Some(thumbnails) = self.thumbnails.take().filter(|_| complete) {
            thumbnails.finish();
        }
        if self.write() {
            log::info!("the page is {}", self.folder.join(PAGE).display());
        }
    }
}

fn about(parts: &Parts, steps: u64) -> About {
    let device = match &parts.validator.device {
        candle_core::Device::Cpu => "CPU".to_string(),
        candle_core::Device::Cuda(_) => "CUDA".to_string(),
        candle_core::Device::Metal(_) => "Metal".to_string(),
    };
    let clips = parts.encoded.samples.iter().enumerate().map(|(i, sample)| Clip {
        name: sample
            .video
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        caption: sample.caption.clone(),
        bucket: sample.bucket,
        repeats: sample.repeats,
        fps: sample.fps,
        thumbnail: (i < thumbnails::MOST).then(|| thumbnails::name(&sample.key.hash().to_string())),
    });
    About {
        steps,
        frame_rate: parts.family.frame_rate(),
        environment: Environment::here(&device, parts.validator.dtype.as_str()),
        clips: clips.collect(),
    }
}

/// The pictures of the first clips.
fn wanted(parts: &Parts) -> Vec<Thumbnail> {
    let samples = parts.encoded.samples.iter().take(thumbnails::MOST);
    let wanted = samples.map(|sample| Thumbnail {
        clip: sample.video.clone(),
        bucket: sample.bucket,
        name: thumbnails::name(&sample.key.hash().to_string()),
    });
    wanted.collect()
}
