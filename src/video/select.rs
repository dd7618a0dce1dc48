//! Which frames of a clip are taken, by the times at which they are on screen.
//!
//! Without a target rate the clip's own frames are counted; with one, the frames on screen at `k / fps` are. `uniform`
//! takes times evenly spaced from the first to the last, `head` the first ones, `random` a stretch from somewhere.

/// Times closer than this part of a frame are the same time: timestamps are rounded to the container's clock.
const SLACK: f64 = 1e-3;

/// How frames are picked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Select {
    /// Evenly spaced from the first to the last.
    Uniform,
    /// The first ones.
    Head,
    /// Neighbours, starting at `at` (0..1) of what is left over.
    Random { at: f64 },
}

/// How many frames a clip has at this rate; its own frames without one.
///
/// `timestamps` are in seconds, ascending; `fps_of_clip` says how long the last frame stays.
pub fn available(timestamps: &[f64], fps_of_clip: f64, fps: Option<f64>) -> usize {
    match fps {
        None => timestamps.len(),
        Some(fps) => {
            let count = duration(timestamps, fps_of_clip) * fps;
            // A clip of n frames asked for at its own rate has n.
            if count.is_finite() {
                ((count + SLACK).floor().max(0.0) as usize).max(timestamps.len().min(1))
            } else {
                0
            }
        }
    }
}

/// The indices of `count` frames, ascending; None when the clip has fewer.
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
        // k (available - 1) / (count - 1), rounded down: as `uniform` does on frames of a constant rate.
        Select::Uniform => (0..count)
            .map(|k| on_grid(k * (available - 1) / (count - 1).max(1)))
            .collect(),
        Select::Head | Select::Random { .. } => (start..start + count).map(on_grid).collect(),
    })
}

/// Frames a second of what [`select`] takes: the rate that was asked for, or the clip's, but fewer where frames in between
/// are left out.
pub fn rate(timestamps: &[f64], fps_of_clip: f64, how: Select, fps: Option<f64>, count: usize) -> f64 {
    let rate = fps.unwrap_or(fps_of_clip);
    let steps = available(timestamps, fps_of_clip, fps).saturating_sub(1);
    match how {
        Select::Uniform if count > 1 && steps > 0 => rate * (count - 1) as f64 / steps as f64,
        Select::Uniform | Select::Head | Select::Random { .. } => rate,
    }
}

/// From the first frame's appearance to the last one's end.
fn duration(timestamps: &[f64], fps: f64) -> f64 {
    match timestamps {
        [first, .., last] => last - first + 1.0 / fps,
        [_] => 1.0 / fps,
        [] => 0.0,
    }
}

/// The last frame that has appeared by `time`.
fn on_screen(timestamps: &[f64], fps: f64, time: f64) -> usize {
    timestamps
        .partition_point(|t| *t <= time + SLACK / fps)
        .saturating_sub(1)
}
