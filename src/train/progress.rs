//! Progress of training, in one line.

use super::metrics::Record;

/// Decay of smoothed numbers per step.
const DECAY: f64 = 0.98;

/// Exponential mean with Adam's correction for its start at zero: `m = d m + (1 - d) x`, shown as `m / (1 - d^n)`.
/// arXiv:1412.6980, 3
#[derive(Debug, Clone)]
pub struct Smoothed {
    decay: f64,
    mean: f64,
    /// `1 - d^n`
    weight: f64,
}

impl Smoothed {
    /// Mean with `decay` from 0 (no memory) to below 1.
    pub fn new(decay: f64) -> Self {
        Self {
            decay,
            mean: 0.0,
            weight: 0.0,
        }
    }

    /// Adds a value; non-finite ones are ignored.
    pub fn add(&mut self, value: f64) {
        if value.is_finite() {
            self.mean = self.decay * self.mean + (1.0 - self.decay) * value;
            self.weight = self.decay * self.weight + (1.0 - self.decay);
        }
    }

    /// Returns the mean; `None` before the first value.
    pub fn get(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.mean / self.weight)
    }
}

/// Smoothed metrics of the run so far.
#[derive(Debug, Clone)]
pub struct Progress {
    steps: u64,
    loss: Smoothed,
    step_seconds: Smoothed,
}

impl Progress {
    /// Progress of a run of `steps` steps.
    pub fn new(steps: u64) -> Self {
        Self {
            steps,
            loss: Smoothed::new(DECAY),
            step_seconds: Smoothed::new(DECAY),
        }
    }

    /// Adds a step; returns its line, such as `step 120/1200  loss 0.0523  lr 3.00e-5  1.24 s/step  22 min left  8.1
    /// GiB`.
    pub fn line(&mut self, record: &Record) -> String {
        self.loss.add(record.loss);
        self.step_seconds.add(record.step_seconds);
        let mut parts = vec![format!("step {}/{}", record.step, self.steps)];
        match self.loss.get() {
            Some(loss) => parts.push(format!("loss {loss:.4}")),
            None => parts.push("loss not finite".into()),
        }
        parts.push(format!("lr {:.2e}", record.lr));
        if let Some(seconds) = self.step_seconds.get() {
            parts.push(pace(seconds));
            let left = self.steps.saturating_sub(record.step);
            if left > 0 {
                parts.push(format!("{} left", span(left as f64 * seconds)));
            }
        }
        if let Some(bytes) = record.peak_memory_bytes {
            parts.push(format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)));
        }
        if let Some(communication) = &record.communication {
            parts.push(format!(
                "{} between ranks",
                pace(communication.communication_seconds + communication.waiting_seconds)
            ));
        }
        if let Some(skipped) = record.skipped {
            parts.push(format!("{skipped} skipped"));
        }
        parts.join("  ")
    }
}

fn pace(seconds: f64) -> String {
    if seconds < 0.1 {
        return format!("{:.1} ms/step", seconds * 1000.0);
    }
    format!("{seconds:.2} s/step")
}

/// Formats a duration: `8 s`, `22 min`, `3 h 05 min`, `2 d 04 h`.
fn span(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match hours {
        _ if seconds < 60 => format!("{seconds} s"),
        0 => format!("{minutes} min"),
        1..48 => format!("{hours} h {:02} min", minutes % 60),
        _ => format!("{} d {:02} h", hours / 24, hours % 24),
    }
}
