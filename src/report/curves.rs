//! `metrics.jsonl` as columns for the charts.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Number of steps beyond which a log is thinned, to limit the size of the page.
const MOST: usize = 20_000;

/// Steps kept of each segment of a thinned log: the least and the greatest loss, the greatest norm, the last.
const A_STRETCH: usize = 4;

/// Columns with one entry per step; null for numbers that are not finite or were not logged.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Curves {
    /// Logged steps; more than are kept if the log was thinned.
    pub logged: usize,
    /// Number of the step, from 1.
    pub step: Vec<u64>,
    /// Mean loss of the step.
    pub loss: Vec<Option<f32>>,
    /// Norm of the gradient before clipping.
    pub grad_norm: Vec<Option<f32>>,
    /// Learning rate.
    pub lr: Vec<Option<f32>>,
    /// Duration of the step.
    pub step_seconds: Vec<Option<f32>>,
    /// Peak memory of the process up to then.
    pub peak_memory_bytes: Vec<Option<u64>>,
    /// Means of a thinned log, because the steps kept are not representative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub means: Option<Means>,
    /// Steps without an update.
    pub skipped: u64,
    /// Duration of all steps.
    pub seconds: f64,
}

/// Means over all logged steps since the previous step in [`Curves`], that one excluded.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Means {
    pub loss: Vec<Option<f32>>,
    pub grad_norm: Vec<Option<f32>>,
    pub step_seconds: Vec<Option<f32>>,
}

/// A line of the log. Keys that are not drawn are ignored.
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
    /// Reads the curves of a log; none without a log. Incomplete lines are skipped: the log may be growing.
    ///
    /// # Errors
    /// Fails for a log that cannot be read.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        match std::fs::read(path) {
            Ok(log) => Ok(Self::parse(&log)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("{}: cannot be read", path.display())),
        }
    }

    /// Same as [`read`](Self::read), from the log's bytes.
    pub fn parse(log: &[u8]) -> Self {
        let lines = log.split(|byte| *byte == b'\n');
        let lines = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        // If a step is logged twice, the later line counts.
        let lines: BTreeMap<u64, Line> = lines.map(|line| (line.step, line)).collect();
        let lines: Vec<Line> = lines.into_values().collect();
        let mut curves = Self {
            logged: lines.len(),
            skipped: lines.iter().filter_map(|line| line.skipped).max().unwrap_or(0),
            seconds: lines.iter().filter_map(|line| line.step_seconds).sum(),
            ..Self::default()
        };
        let kept = thinned(&lines, MOST);
        kept.iter().for_each(|place| curves.push(&lines[*place]));
        curves.means = (kept.len() < lines.len()).then(|| Means::between(&lines, &kept));
        curves
    }

    fn push(&mut self, line: &Line) {
        self.step.push(line.step);
        self.loss.push(number(line.loss));
        self.grad_norm.push(number(line.grad_norm));
        self.lr.push(number(line.lr));
        self.step_seconds.push(number(line.step_seconds));
        self.peak_memory_bytes.push(line.peak_memory_bytes);
    }
}

impl Means {
    fn between(lines: &[Line], kept: &[usize]) -> Self {
        let mut means = Self::default();
        let mut start = 0;
        for place in kept {
            let stretch = &lines[start..=*place];
            means.loss.push(mean(stretch, |line| line.loss));
            means.grad_norm.push(mean(stretch, |line| line.grad_norm));
            means.step_seconds.push(mean(stretch, |line| line.step_seconds));
            start = place + 1;
        }
        means
    }
}

fn mean(lines: &[Line], value: fn(&Line) -> Option<f64>) -> Option<f32> {
    let known = lines.iter().filter_map(value);
    let (sum, count) = known.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    number((count > 0.0).then_some(sum / count))
}

/// Rounds to f32: seven digits are more than a chart shows, and shorter to write.
fn number(value: Option<f64>) -> Option<f32> {
    value.map(|value| value as f32).filter(|value| value.is_finite())
}

/// Returns the indices of at most `most` of the lines, ascending, such that no peak is lost.
fn thinned(lines: &[Line], most: usize) -> Vec<usize> {
    if lines.len() <= most {
        return (0..lines.len()).collect();
    }
    let length = lines.len().div_ceil((most / A_STRETCH).max(1));
    let mut kept = Vec::with_capacity(most);
    for (number, stretch) in lines.chunks(length).enumerate() {
        let extreme = |value: fn(&Line) -> Option<f64>, sign: f64| {
            let known = stretch
                .iter()
                .enumerate()
                .filter_map(|(i, line)| Some((i, value(line)? * sign)));
            known.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
        };
        let mut places = vec![stretch.len() - 1];
        places.extend(extreme(|line| line.loss, 1.0));
        places.extend(extreme(|line| line.loss, -1.0));
        places.extend(extreme(|line| line.grad_norm, 1.0));
        places.sort_unstable();
        places.dedup();
        kept.extend(places.into_iter().map(|place| number * length + place));
    }
    kept
}
