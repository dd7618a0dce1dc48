//! The page of a run while it trains. The page is a service: what goes wrong with it is a warning, and training goes on.

use std::time::{Duration, Instant};

use indicatif::BinaryBytes;

use super::about::{About, Clip};
use super::thumbnails::{self, Maker, Thumbnail};
use super::{Environment, Run};
use crate::data::cache::Encoding;
use crate::run_dir::RunDir;
use crate::train::validate::Validator;

/// Between two pages, without an occasion.
const BETWEEN: Duration = Duration::from_secs(30);

/// A page may take one part in so many of the run's time.
const SHARE: u32 = 100;

/// Names of the peak of memory on the page.
const PLANNED: &str = "memory planned";
const MEASURED: &str = "memory measured";

/// Name of the settings that were chosen by the plan.
const CHOSEN: &str = "chosen for the memory";

/// The page of a run on its way.
pub struct LivePage {
    dir: RunDir,
    next: Instant,
    thumbnails: Option<Maker>,
}

impl LivePage {
    /// Notes what only training knows, and begins with the clips' thumbnails. The run is of `steps` steps.
    pub fn start(validator: &Validator, steps: u64) -> Self {
        let dir = validator.dir.clone();
        if let Err(error) = about(validator, steps).write(&dir) {
            log::warn!("the page will lack the clips: {error:#}");
        }
        let pictured = validator.encoded.samples.iter();
        let wanted = pictured.map(|sample| Thumbnail {
            clip: sample.video.clone(),
            bucket: sample.bucket,
            name: thumbnail(sample),
        });
        let thumbnails = Maker::start(&dir, wanted.collect());
        Self {
            dir,
            next: Instant::now(),
            thumbnails: Some(thumbnails),
        }
    }

    /// Notes the peak of the run's memory, as planned and as measured, beside each other.
    pub fn note_memory(&self, planned: u64, measured: u64) {
        let bytes = |bytes: u64| BinaryBytes(bytes).to_string();
        self.note(&[(PLANNED, bytes(planned)), (MEASURED, bytes(measured))]);
    }

    /// Notes settings that were chosen for the run to fit in memory, as `--set` takes them.
    pub fn note_chosen(&self, sets: &[String]) {
        if !sets.is_empty() {
            self.note(&[(CHOSEN, sets.join(", "))]);
        }
    }

    /// Notes facts beside those of the machine.
    fn note(&self, facts: &[(&str, String)]) {
        let Some(mut about) = About::read(&self.dir) else {
            return;
        };
        for (what, value) in facts {
            about.environment.0.retain(|(name, _)| name != what);
            about.environment.0.push((what.to_string(), value.clone()));
        }
        if let Err(error) = about.write(&self.dir) {
            log::warn!("the page will lack the memory: {error:#}");
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
        let written = Run::read(self.dir.path()).and_then(|run| super::write(&[run], &self.dir.page()));
        self.next = Instant::now() + BETWEEN.max(started.elapsed() * SHARE);
        written
            .inspect_err(|error| log::warn!("the page is not written, training goes on: {error:#}"))
            .is_ok()
    }

    /// Writes the last page of a process; with all thumbnails where the run is complete.
    pub fn finish(mut self, complete: bool) {
        if let Some(thumbnails) = self.thumbnails.take().filter(|_| complete) {
            thumbnails.finish();
        }
        if self.write() {
            log::info!("the page is {}", self.dir.page().display());
        }
    }
}

fn about(validator: &Validator, steps: u64) -> About {
    let device = match &validator.load.device {
        candle_core::Device::Cpu => "CPU",
        candle_core::Device::Cuda(_) => "CUDA",
        candle_core::Device::Metal(_) => "Metal",
    };
    let clips = validator.encoded.samples.iter().map(|sample| Clip {
        name: sample
            .video
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        caption: sample.caption.clone(),
        bucket: sample.bucket,
        repeats: sample.repeats,
        fps: sample.fps,
        thumbnail: Some(thumbnail(sample)),
    });
    About {
        steps,
        frame_rate: validator.family.spec().family.frame_rate,
        environment: Environment::here(device, validator.load.dtype.as_str()),
        clips: clips.collect(),
    }
}

/// Name of a clip's thumbnail, below the report's folder.
fn thumbnail(sample: &Encoding) -> String {
    thumbnails::name(&sample.key.hash().to_string())
}
