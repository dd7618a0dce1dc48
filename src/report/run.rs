//! A run, as recorded in its folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::Environment;
use super::about::{About, Clip};
use super::curves::Curves;
use super::settings::Settings;
use super::videos::Grid;
use crate::run_dir::RunDir;

/// Data of a run for the page.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Folder, absolute.
    pub folder: PathBuf,
    /// Name of the folder.
    pub name: String,
    /// Steps of the whole run, if known.
    pub steps: Option<u64>,
    /// Columns of `metrics.jsonl`.
    pub curves: Curves,
    /// Validation videos by prompt and step.
    pub grid: Grid,
    /// Settings of the run file.
    pub settings: Settings,
    /// Machine, versions and device.
    pub environment: Environment,
    /// Clips, without missing thumbnails. `None` if training left no list.
    pub clips: Option<Vec<Clip>>,
}

impl Run {
    /// Reads the run in a folder. Missing files are omitted, because a run may have just begun.
    ///
    /// # Errors
    /// Fails for a folder that holds no run, and for a log that cannot be read.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let shown = folder.display();
        ensure!(folder.is_dir(), "{shown}: no such folder; name the output_dir of a run");
        let dir = RunDir::new(folder);
        ensure!(
            dir.config().is_file() || dir.metrics().is_file(),
            "{shown}: not a run, because it has neither config.yaml nor metrics.jsonl; name the output_dir of a run"
        );
        let folder = folder
            .canonicalize()
            .with_context(|| format!("{shown}: cannot be read"))?;
        let dir = RunDir::new(&folder);
        let settings = Settings::read(&dir);
        let about = About::read(&dir);
        let frame_rate = about.as_ref().map(|about| about.frame_rate).filter(|rate| *rate > 0.0);
        let steps = about.as_ref().map(|about| about.steps).filter(|steps| *steps > 0);
        let (environment, clips) = about.map_or((Environment::default(), None), |about| {
            (about.environment, Some(with_thumbnails(&dir, about.clips)))
        });
        Ok(Self {
            name: dir.name().unwrap_or_else(|| "run".into()),
            steps: steps.or(settings.steps()),
            curves: Curves::read(&dir.metrics())?,
            grid: Grid::read(&dir, &settings, frame_rate),
            settings,
            environment,
            clips,
            folder,
        })
    }

    /// Returns the last step of the log, 0 before the first.
    pub fn step(&self) -> u64 {
        self.curves.step.last().copied().unwrap_or(0)
    }

    /// Returns true if all steps are done.
    pub fn is_complete(&self) -> bool {
        self.steps.is_some_and(|steps| self.step() >= steps)
    }
}

fn with_thumbnails(dir: &RunDir, mut clips: Vec<Clip>) -> Vec<Clip> {
    for clip in &mut clips {
        clip.thumbnail
            .take_if(|name| !dir.report().join(name.as_str()).is_file());
    }
    clips
}
