//! The validation videos of a run as a grid: prompts by rows, steps by columns.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use super::settings::Settings;
use crate::train::model_card::address;

/// What is in `validation/`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Grid {
    /// Ascending; 0 is the base model.
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
    /// Links from the run's folder, one a step; null where there is no video.
    pub films: Vec<Option<String>>,
}

impl Grid {
    /// Of the run in a folder. `frame_rate` is that of videos whose prompt names none.
    pub fn read(folder: &Path, settings: &Settings, frame_rate: Option<f64>) -> Self {
        let mut steps = BTreeSet::new();
        let mut rows: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
        for round in names(&folder.join("validation")) {
            let Some(step) = round.strip_prefix("step-").and_then(|step| step.parse().ok()) else {
                continue;
            };
            for file in names(&folder.join("validation").join(&round)) {
                // What begins with a dot is not finished.
                if let Some(name) = file.strip_suffix(".mp4").filter(|name| !name.starts_with('.')) {
                    let link = address(&format!("validation/{round}/{file}"));
                    rows.entry(name.to_string()).or_default().insert(step, link);
                    steps.insert(step);
                }
            }
        }
        let steps: Vec<u64> = steps.into_iter().collect();
        let rows = rows.into_iter().map(|(name, films)| {
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
                films: steps.iter().map(|step| films.get(step).cloned()).collect(),
            }
        });
        Self {
            rows: rows.collect(),
            steps,
        }
    }
}

/// What a folder holds; nothing where there is none.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
