//! `metrics.jsonl` as columns for the charts.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// More steps than this are thinned, so that a page stays a page.
const MOST: usize = 20_000;

/// Steps that stand for a stretch of a thinned log: the least and the greatest loss, the greatest norm, the last.
const A_STRETCH: usize = 4;

/// One entry a step in every column; null where a number was not finite or was not told.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Curves {
    /// Steps that the log tells of; more than there are here where it was thinned.
    pub logged: usize,
    pub step: Vec<u64>,
    pub loss: Vec<Option<f32>>,
    pub grad_norm: Vec<Option<f32>>,
    pub lr: Vec<Option<f32>>,
    pub step_seconds: Vec<Option<f32>>,
    pub peak_memory_bytes: Vec<Option<u64>>,
    /// Steps that moved nothing.
    pub skipped: u64,
    /// What all steps took.
    pub seconds: f64,
}

/// A line of the log. Keys that are not drawn are passed over.
#[derive(Debug, Clone, Deserialize)]
struct Line {
    step: u64,
    loss: Option<f64>,
    grad_norm: Option<f64>,
    lr: Option<f64>,
    step_seconds: Option<f64>,
    peak_memory_bytes: Option<u64>,
    skipped: Option<u64>,
}

impl Curves {
    /// The curves of a log; none where there is no log. Lines that are not whole are passed over: the log may be growing.
    ///
    /// # Errors
    /// A log that is there and cannot be read.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        match std::fs::read(path) {
            Ok(log) => Ok(Self::parse(&log)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("{}: cannot be read", path.display())),
        }
    }

    /// As [`read`](Self::read), from the log's bytes.
    pub fn parse(log: &[u8]) -> Self {
        let lines = log.split(|byte| *byte == b'\n');
        let lines = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        // Of a step that is told twice the later line holds.
        let lines: BTreeMap<u64, Line> = lines.map(|line| (line.step, line)).collect();
        let lines: Vec<Line> = lines.into_values().collect();
        let mut curves = Self {
            logged: lines.len(),
            skipped: lines.iter().filter_map(|line| line.skipped).max().unwrap_or(0),
            seconds: lines.iter().filter_map(|line| line.step_seconds).sum(),
            ..Self::default()
        };
        thinned(&lines, MOST).into_iter().for_each(|line| curves.push(line));
        curves
    }

    fn push(&mut self, line: &Line) {
        // Seven digits are more than a chart shows, and shorter to write.
        let number = |value: Option<f64>| value.map(|value| value as f32).filter(|value| value.is_finite());
        self.step.push(line.step);
        self.loss.push(number(line.loss));
        self.grad_norm.push(number(line.grad_norm));
        self.lr.push(number(line.lr));
        self.step_seconds.push(number(line.step_seconds));
        self.peak_memory_bytes.push(line.peak_memory_bytes);
    }
}

/// At most `most` of the lines, in their order, such that no peak is lost.
fn thinned(lines: &[Line], most: usize) -> Vec<&Line> {
    if lines.len() <= most {
        return lines.iter().collect();
    }
    let stretch = lines.len().div_ceil((most / A_STRETCH).max(1));
    let mut kept = Vec::with_capacity(most);
    for stretch in lines.chunks(stretch) {
        let extreme = |value: fn(&Line) -> Option<f64>, sign: f64| {
            let known = stretch.iter().enumerate().filter_map(|(i, line)| Some((i, value(line)? * sign)));
            known.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
        };
        let mut places = vec![stretch.len() - 1];
        places.extend(extreme(|line| line.loss, 1.0));
        places.extend(extreme(|line| line.loss, -1.0));
        places.extend(extreme(|line| line.grad_norm, 1.0));
        places.sort_unstable();
        places.dedup();
        kept.extend(places.into_iter().map(|i| &stretch[i]));
    }
    kept
}
