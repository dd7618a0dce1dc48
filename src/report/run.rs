//! A run, as its folder tells of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::about::{About, Clip};
use super::curves::Curves;
use super::films::Grid;
use super::settings::Settings;
use super::{Environment, FOLDER};

/// All that the page shows of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Its folder, absolute.
    pub folder: PathBuf,
    /// The folder's name.
    pub name: String,
    /// Of the whole run, where that is known.
    pub steps: Option<u64>,
    pub curves: Curves,
    pub grid: Grid,
    pub settings: Settings,
    pub environment: Environment,
    /// Those whose thumbnail is not there have none. `None` where training left no list.
    pub clips: Option<Vec<Clip>>,
}

impl Run {
    /// Reads the run in a folder. What is missing in it is left out, for a run may have just begun.
    ///
    /// # Errors
    /// A folder that holds no run, a log that cannot be read.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let shown = folder.display();
        ensure!(folder.is_dir(), "{shown}: no such folder; name the output_dir of a run");
        let is_run = ["config.yaml", "metrics.jsonl"]
            .iter()
            .any(|name| folder.join(name).is_file());
        ensure!(
            is_run,
            "{shown}: is no run, since it has neither config.yaml nor metrics.jsonl; name the output_dir of a run"
        );
        let folder = folder
            .canonicalize()
            .with_context(|| format!("{shown}: cannot be read"))?;
        let name = folder
            .file_name()
            .map_or("run".into(), |name| name.to_string_lossy().into_owned());
        let settings = Settings::read(&folder);
        let about = About::read(&folder);
        let frame_rate = about.as_ref().map(|about| about.frame_rate).filter(|rate| *rate > 0.0);
        let steps = about.as_ref().map(|about| about.steps).filter(|steps| *steps > 0);
        let (environment, clips) = about.map_or((Environment::default(), None), |about| {
            (about.environment, Some(with_thumbnails(&folder, about.clips)))
        });
        Ok(Self {
            name,
            steps: steps.or(settings.steps()),
            curves: Curves::read(&folder.join("metrics.jsonl"))?,
            grid: Grid::read(&folder, &settings, frame_rate),
            settings,
            environment,
            clips,
            folder,
        })
    }

    /// The last step of the log, 0 before the first.
    pub fn step(&self) -> u64 {
        self.curves.step.last().copied().unwrap_or(0)
    }

    /// Whether all steps are done.
    pub fn is_complete(&self) -> bool {
        self.steps.is_some_and(|steps| self.step() >= steps)
    }
}

fn with_thumbnails(folder: &Path, mut clips: Vec<Clip>) -> Vec<Clip> {
    for clip in &mut clips {
        clip.thumbnail
            .take_if(|name| !folder.join(FOLDER).join(name.as_str()).is_file());
    }
    clips
}
