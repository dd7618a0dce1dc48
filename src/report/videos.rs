//! Validation videos of a run as a grid: a row per prompt, a column per step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use super::settings::Settings;
use crate::run_dir::{self, RunDir};
use crate::url::encode_path;

/// Contents of `validation/`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Grid {
    /// Steps, ascending; 0 is the base model.
    pub steps: Vec<u64>,
    pub rows: Vec<Row>,
}

/// The videos of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// `00-a-red-ball`
    pub name: String,
    pub prompt: String,
    pub details: String,
    pub num_frames: Option<u64>,
    /// (height, width)
    pub size: Option<(u64, u64)>,
    pub fps: Option<f64>,
    /// Links relative to the run's folder, one per step; null without a video.
    pub videos: Vec<Option<String>>,
}

impl Grid {
    /// Reads those of a run. `frame_rate` is that of videos whose prompt names none.
    pub fn read(dir: &RunDir, settings: &Settings, frame_rate: Option<f64>) -> Self {
        let mut steps = BTreeSet::new();
        let mut rows: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
        for round in names(&dir.validation()) {
            let Some(step) = run_dir::step_of(&round) else {
                continue;
            };
            let round = dir.validation().join(round);
            for file in names(&round) {
                // What begins with a dot is not finished.
                if let Some(name) = file.strip_suffix(".mp4").filter(|name| !name.starts_with('.')) {
                    let link = encode_path(&dir.relative(&round.join(&file)).unwrap_or_default());
                    rows.entry(name.to_string()).or_default().insert(step, link);
                    steps.insert(step);
                }
            }
        }
        let steps: Vec<u64> = steps.into_iter().collect();
        let rows = rows.into_iter().map(|(name, videos)| {
            let prompt = settings.prompt(&name).unwrap_or_default();
            Row {
                prompt: match prompt.text.is_empty() {
                    true => name
                        .trim_start_matches(|c: char| c.is_ascii_digit())
                        .replace('-', " ")
                        .trim()
                        .into(),
                    false => prompt.text,
                },
                name,
                details: prompt.details,
                num_frames: prompt.num_frames,
                size: prompt.size,
                fps: prompt.fps.or(frame_rate),
                videos: steps.iter().map(|step| videos.get(step).cloned()).collect(),
            }
        });
        Self {
            rows: rows.collect(),
            steps,
        }
    }
}

/// Returns the names in a folder; none if it does not exist.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
