//! `--profile`: further steps, with an interval around every op and kernel.

use std::fmt::Write as _;

use anyhow::Result;
use candle_core::Device;
use serde::Serialize;

use crate::ops::clock::Timestamp;
use crate::ops::profile::{Level, Line, record};

/// Number of profiled steps.
const STEPS: usize = 2;

/// Profile of a step. Seconds and calls per step, measured separately from the timed steps, because intervals take a
/// little time themselves.
#[derive(Debug, Serialize)]
pub struct Profile {
    pub step_seconds: f64,
    /// Time outside of ops: candle's own operations, and the gaps between ops.
    pub rest_seconds: f64,
    /// Ops, the longest first, then the kernels within them.
    pub lines: Vec<Share>,
}

/// Entry of one name.
#[derive(Debug, Serialize)]
pub struct Share {
    level: Level,
    name: String,
    calls: f64,
    seconds: f64,
}

/// Runs `step` a few times with a profile.
pub fn measure(device: &Device, mut step: impl FnMut() -> Result<()>) -> Result<Profile> {
    let started = Timestamp::now(device)?;
    let ((), lines) = record(|| (0..STEPS).try_for_each(|_| step()))?;
    let step_seconds = Timestamp::now(device)?.since(&started)? / STEPS as f64;
    let of_level = |level: Level| lines.iter().filter(move |line| line.level == level).map(share);
    let lines: Vec<Share> = of_level(Level::Op).chain(of_level(Level::Kernel)).collect();
    let ops = lines.iter().filter(|share| share.level == Level::Op);
    let in_ops: f64 = ops.map(|share| share.seconds).sum();
    Ok(Profile {
        step_seconds,
        rest_seconds: (step_seconds - in_ops).max(0.0),
        lines,
    })
}

/// Converts a line to values per step.
fn share(line: &Line) -> Share {
    Share {
        level: line.level,
        name: line.name.clone(),
        calls: line.calls as f64 / STEPS as f64,
        seconds: line.seconds / STEPS as f64,
    }
}

impl Profile {
    pub fn table(&self) -> String {
        let mut text = format!("profile    of a step of {:.3} s\n", self.step_seconds);
        for (level, title) in [(Level::Op, "ops"), (Level::Kernel, "kernels and products within them")] {
            let lines: Vec<&Share> = self.lines.iter().filter(|line| line.level == level).collect();
            if lines.is_empty() {
                continue;
            }
            let _ = writeln!(text, "  {title}");
            for line in lines {
                self.row(&mut text, line.seconds, &format!("{:8.1} x {}", line.calls, line.name));
            }
            if level == Level::Op {
                self.row(&mut text, self.rest_seconds, "           outside of ops");
            }
        }
        text
    }

    fn row(&self, text: &mut String, seconds: f64, what: &str) {
        let percent = 100.0 * seconds / self.step_seconds.max(f64::MIN_POSITIVE);
        let _ = writeln!(text, "  {seconds:11.6} s {percent:5.1} %  {what}");
    }
}
