//! Refusal of a run that cannot fit, before anything is loaded.
//!
//! A plan may be off by a tenth, and free memory changes; a run is refused only where it takes more than is there by more
//! than that explains ([`MARGIN`]).

use std::fmt;

use indicatif::BinaryBytes;

use super::Plan;
use super::suggestions::Suggestion;
use super::training::Training;

/// Share of a plan that it may be too high by.
pub const MARGIN: f64 = 0.15;

/// Error for a run whose training cannot fit.
#[derive(Debug, Clone, PartialEq)]
pub struct TooLarge {
    /// Memory that it takes.
    pub training: Training,
    /// Bytes that are free.
    pub free: u64,
    /// Settings under which the run would fit.
    pub suggestions: Vec<Suggestion>,
}

impl TooLarge {
    /// Returns the error if a plan cannot fit into so many free bytes; `suggest` is asked then.
    pub fn check(plan: &Plan, free: u64, suggest: impl FnOnce() -> Vec<Suggestion>) -> Option<Self> {
        let at_least = plan.training.memory.peak_bytes as f64 * (1.0 - MARGIN);
        (at_least > free as f64).then(|| Self {
            training: plan.training.clone(),
            free,
            suggestions: suggest(),
        })
    }
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let free = BinaryBytes(self.free);
        let Training { memory, clips, .. } = &self.training;
        let [all, weights, adapters, optimizer, activations] = [
            memory.peak_bytes,
            self.training.weight_bytes,
            self.training.adapter_bytes,
            self.training.optimizer_bytes,
            self.training.activation_bytes,
        ]
        .map(BinaryBytes);
        write!(
            f,
            "too little memory: training is planned to take {all} ({weights} weights, {adapters} adapters, {optimizer} optimiser, \
             {activations} activations and gradients of {} x {}), and {free} are free",
            clips.count, clips.bucket
        )?;
        if self.suggestions.is_empty() {
            write!(f, "; no setting known to this program makes it fit")?;
        } else {
            write!(f, "; it would fit with")?;
        }
        for suggestion in &self.suggestions {
            write!(f, "\n  {suggestion}")?;
        }
        write!(f, "\ntrain.on_too_little_memory: warn starts it all the same")
    }
}

impl std::error::Error for TooLarge {}
