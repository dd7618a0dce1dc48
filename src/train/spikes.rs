//! Losses that stand out: more than `factor` times the median of the losses before.
//!
//! All that is known of the past is the log of the run, so that a resumed run tells of the same steps.

use std::collections::VecDeque;

/// Losses that the median is taken of, at most.
pub const WINDOW: usize = 100;

/// With fewer than these, nothing stands out.
const FEWEST: usize = 20;

/// The losses before, of steps whose loss was finite.
#[derive(Debug, Clone)]
pub struct Spikes {
    /// None: nothing stands out.
    factor: Option<f64>,
    recent: VecDeque<f64>,
}

impl Spikes {
    /// After these losses, the last of a run so far.
    pub fn new(factor: Option<f64>, before: impl IntoIterator<Item = f64>) -> Self {
        let mut spikes = Self {
            factor,
            recent: VecDeque::new(),
        };
        before.into_iter().for_each(|loss| spikes.push(loss));
        spikes
    }

    /// Takes a loss in; returns the median of those before where it stands out from them.
    pub fn add(&mut self, loss: f64) -> Option<f64> {
        let median = (self.recent.len() >= FEWEST).then(|| median(&self.recent));
        self.push(loss);
        median.filter(|median| self.factor.is_some_and(|factor| loss > factor * median))
    }

    fn push(&mut self, loss: f64) {
        if !loss.is_finite() {
            return;
        }
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(loss);
    }
}

/// Of an even number of losses the upper one of the two in the middle.
fn median(losses: &VecDeque<f64>) -> f64 {
    let mut sorted: Vec<f64> = losses.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
