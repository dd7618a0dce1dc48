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
    /// Of a thinned log, since what is kept of it is not fair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub means: Option<Means>,
    /// Steps that moved nothing.
    pub skipped: u64,
    /// What all steps took.
    pub seconds: f64,
}

/// Means over all logged steps since the step before in [`Curves`], that one excluded.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Means {
    pub loss: Vec<Option<f32>>,
    pub grad_norm: Vec<Option<f32>>,
    pub step_seconds: Vec<Option<f32>>,
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

/// Seven digits are more than a chart shows, and shorter to write.
fn number(value: Option<f64>) -> Option<f32> {
    value.map(|value| value as f32).filter(|value| value.is_finite())
}

/// The places of at most `most` of the lines, ascending, such that no peak is lost.
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
