//! Where the time of a computation goes: intervals around every op, and within them around every kernel and product.
//!
//! An interval is a pair of instants of the device's own clock ([`Mark`]): on a GPU two events in the stream, so that nobody
//! waits for anything while it runs. Intervals of one name are added up once all is done. While nothing is recorded, an
//! interval costs the reading of one flag.
//!
//! Ops do not hold each other, so that their times may be added. Kernels are parts of ops. Only the thread that records is
//! looked at.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use candle_core::{Device, Result};
use serde::Serialize;

use super::clock::Mark;

thread_local! {
    static RECORDS: Cell<bool> = const { Cell::new(false) };
    static INTERVALS: RefCell<Vec<Interval>> = const { RefCell::new(Vec::new()) };
}

/// What an interval is around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// An op of `ops`, there or back, or what is done between them.
    Op,
    /// A kernel, or a call of a library.
    Kernel,
}

struct Interval {
    level: Level,
    name: String,
    began: Mark,
    ended: Mark,
}

/// All intervals of one name.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    pub level: Level,
    pub name: String,
    pub calls: usize,
    pub seconds: f64,
}

/// An interval from where it is made to where it is dropped.
#[must_use]
pub struct Span(Option<Open>);

struct Open {
    level: Level,
    name: String,
    device: Device,
    began: Mark,
}

/// Begins an interval of work on `device`, where one is wanted.
pub fn span(level: Level, device: &Device, name: impl FnOnce() -> String) -> Span {
    if !RECORDS.get() {
        return Span(None);
    }
    // An event that the driver refuses is an error of the very next call as well.
    Span(Mark::now(device).ok().map(|began| Open {
        level,
        name: name(),
        device: device.clone(),
        began,
    }))
}

/// The same around a kernel, or a call of a library, on a GPU.
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
        if let Ok(ended) = Mark::now(&open.device) {
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

/// Runs `compute`, and tells where its time went: what took longest first.
///
/// # Errors
/// Those of `compute`; what a GPU reports of anything that it was asked for meanwhile.
pub fn record<T, E: From<candle_core::Error>>(
    compute: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<(T, Vec<Line>), E> {
    /// Ends the recording, also where `compute` panics.
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
