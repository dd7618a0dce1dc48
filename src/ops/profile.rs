//! Profile of a computation: intervals around every op, and within them around every kernel and product.
//!
//! An interval is a pair of [`Timestamp`]s of the device's own clock: on a GPU two events in the stream, so that
//! measuring never waits. Intervals of the same name are added up at the end. While nothing is recorded, an interval
//! costs the reading of one flag.
//!
//! Ops are not nested, so their times may be added. Kernels are parts of ops. Only the recording thread is measured.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use candle_core::{Device, Result};
use serde::Serialize;

use super::clock::Timestamp;

thread_local! {
    static RECORDS: Cell<bool> = const { Cell::new(false) };
    static INTERVALS: RefCell<Vec<Interval>> = const { RefCell::new(Vec::new()) };
}

/// Kinds of interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// An op of `ops`, forward or backward, or candle's work between ops.
    Op,
    /// A kernel or a library call.
    Kernel,
}

struct Interval {
    level: Level,
    name: String,
    began: Timestamp,
    ended: Timestamp,
}

/// All intervals of the same name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Depth in the table.
    pub level: Level,
    /// Name of the intervals.
    pub name: String,
    /// Number of intervals.
    pub calls: usize,
    /// Seconds of all intervals together.
    pub seconds: f64,
}

/// An open interval, which ends when dropped.
#[must_use]
pub struct Span(Option<Open>);

struct Open {
    level: Level,
    name: String,
    device: Device,
    began: Timestamp,
}

/// Begins an interval of work on `device`, if a profile is being recorded.
pub fn span(level: Level, device: &Device, name: impl FnOnce() -> String) -> Span {
    if !RECORDS.get() {
        return Span(None);
    }
    // If the driver refuses an event, the next call fails with the same error.
    Span(Timestamp::now(device).ok().map(|began| Open {
        level,
        name: name(),
        device: device.clone(),
        began,
    }))
}

/// Begins an interval of a kernel or a library call on a GPU.
#[cfg(feature = "cuda")]
pub fn kernel(device: &candle_core::CudaDevice, name: impl FnOnce() -> String) -> Span {
    match RECORDS.get() {
        true => span(Level::Kernel, &Device::Cuda(device.clone()), name),
        false => Span(None),
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(open) = self.0.take() else { return };
        if let Ok(ended) = Timestamp::now(&open.device) {
            INTERVALS.with_borrow_mut(|all| {
                all.push(Interval {
                    level: open.level,
                    name: open.name,
                    began: open.began,
                    ended,
                });
            });
        }
    }
}

/// Runs `compute` and returns its profile, sorted by time, longest first.
///
/// # Errors
/// Those of `compute`, and of the GPU's work meanwhile.
pub fn record<T, E: From<candle_core::Error>>(
    compute: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<(T, Vec<Line>), E> {
    /// Ends the recording, also if `compute` panics.
    struct Around;
    impl Drop for Around {
        fn drop(&mut self) {
            RECORDS.set(false);
        }
    }
    INTERVALS.take();
    RECORDS.set(true);
    let around = Around;
    let computed = compute();
    drop(around);
    let intervals = INTERVALS.take();
    Ok((computed?, sums(&intervals)?))
}

fn sums(intervals: &[Interval]) -> Result<Vec<Line>> {
    let mut by_name: HashMap<(Level, &str), (usize, f64)> = HashMap::new();
    for interval in intervals {
        let (calls, seconds) = by_name.entry((interval.level, &interval.name)).or_default();
        *calls += 1;
        *seconds += interval.ended.since(&interval.began)?;
    }
    let lines = by_name.into_iter().map(|((level, name), (calls, seconds))| Line {
        level,
        name: name.to_string(),
        calls,
        seconds,
    });
    let mut lines: Vec<Line> = lines.collect();
    lines.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then_with(|| a.name.cmp(&b.name)));
    Ok(lines)
}
