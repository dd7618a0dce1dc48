//! Loss spikes: losses of more than `factor` times the median of the previous ones.
//!
//! Only the log of the run is used, so that a resumed run reports the same steps.

use std::collections::VecDeque;

/// Number of losses in the median.
pub const WINDOW: usize = 100;

/// Number of losses below which nothing is a spike.
const FEWEST: usize = 20;

/// Previous finite losses.
#[derive(Debug, Clone)]
pub struct LossSpikes {
    /// None: nothing is a spike.
    factor: Option<f64>,
    recent: VecDeque<f64>,
}

impl LossSpikes {
    /// Starts after these losses, the last of a run so far.
    pub fn new(factor: Option<f64>, before: impl IntoIterator<Item = f64>) -> Self {
        let mut spikes = Self {
            factor,
            recent: VecDeque::new(),
        };
        before.into_iter().for_each(|loss| spikes.push(loss));
        spikes
    }

    /// Adds a loss; returns the median of the previous ones if it is a spike.
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

/// Returns the median; for an even number of losses the upper middle one.
fn median(losses: &VecDeque<f64>) -> f64 {
    let mut sorted: Vec<f64> = losses.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
