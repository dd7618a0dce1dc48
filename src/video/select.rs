//! Selection of a clip's frames, by their display times.
//!
//! Without a target rate the clip's own frames are counted; with one, the frames displayed at `k / fps` are. `uniform`
//! takes evenly spaced times from the first to the last, `head` the first ones, `random` consecutive ones from a random
//! start.

/// Fraction of a frame within which times are equal: timestamps are rounded to the container's clock.
const SLACK: f64 = 1e-3;

/// Methods of selecting frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Select {
    /// Evenly spaced from the first to the last.
    Uniform,
    /// The first ones.
    Head,
    /// Consecutive ones, whose start is at `at` (0..1) of the possible starts.
    Random {
        /// Position of the start, in 0..1.
        at: f64,
    },
}

/// Returns the number of frames of a clip at this rate; its own frames without one.
///
/// `timestamps` are in seconds, ascending; `fps_of_clip` gives the duration of the last frame.
pub fn available(timestamps: &[f64], fps_of_clip: f64, fps: Option<f64>) -> usize {
    match fps {
        None => timestamps.len(),
        Some(fps) => {
            let count = duration(timestamps, fps_of_clip) * fps;
            // A clip of n frames must have n at its own rate.
            if count.is_finite() {
                ((count + SLACK).floor().max(0.0) as usize).max(timestamps.len().min(1))
            } else {
                0
            }
        }
    }
}

/// Returns the indices of `count` frames, ascending; None if the clip has fewer.
pub fn select(timestamps: &[f64], fps_of_clip: f64, how: Select, fps: Option<f64>, count: usize) -> Option<Vec<usize>> {
    let available = available(timestamps, fps_of_clip, fps);
    if count == 0 || count > available {
        return None;
    }
    let left_over = available - count;
    let start = match how {
        Select::Random { at } => ((at * (left_over + 1) as f64) as usize).min(left_over),
        Select::Uniform | Select::Head => 0,
    };
    let first = timestamps[0];
    let Some(fps) = fps else {
        return Some(match how {
            Select::Uniform => {
                let span = timestamps[timestamps.len() - 1] - first;
                let time = |k: usize| first + span * k as f64 / (count - 1).max(1) as f64;
                (0..count)
                    .map(|k| on_screen(timestamps, fps_of_clip, time(k)))
                    .collect()
            }
            Select::Head | Select::Random { .. } => (start..start + count).collect(),
        });
    };
    let on_grid = |k: usize| on_screen(timestamps, fps_of_clip, first + k as f64 / fps);
    Some(match how {
        // k (available - 1) / (count - 1), rounded down: same as `uniform` on frames of a constant rate.
        Select::Uniform => (0..count)
            .map(|k| on_grid(k * (available - 1) / (count - 1).max(1)))
            .collect(),
        Select::Head | Select::Random { .. } => (start..start + count).map(on_grid).collect(),
    })
}

/// Returns the frames per second of what [`select`] takes: the target rate, or the clip's, but less if frames in
/// between are left out.
pub fn rate(timestamps: &[f64], fps_of_clip: f64, how: Select, fps: Option<f64>, count: usize) -> f64 {
    let rate = fps.unwrap_or(fps_of_clip);
    let steps = available(timestamps, fps_of_clip, fps).saturating_sub(1);
    match how {
        Select::Uniform if count > 1 && steps > 0 => rate * (count - 1) as f64 / steps as f64,
        Select::Uniform | Select::Head | Select::Random { .. } => rate,
    }
}

/// Returns the duration from the start of the first frame to the end of the last one.
fn duration(timestamps: &[f64], fps: f64) -> f64 {
    match timestamps {
        [first, .., last] => last - first + 1.0 / fps,
        [_] => 1.0 / fps,
        [] => 0.0,
    }
}

/// Returns the last frame that has started by `time`.
fn on_screen(timestamps: &[f64], fps: f64, time: f64) -> usize {
    timestamps
        .partition_point(|t| *t <= time + SLACK / fps)
        .saturating_sub(1)
}
