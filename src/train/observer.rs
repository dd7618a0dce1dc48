//! The outside of a run: who watches it, and may ask it to stop.

use super::metrics::Record;

/// Shows how a run goes. The loop knows neither terminals nor pages.
pub trait Observer {
    /// Says whether the run is to stop after the step that it is at.
    fn asks_to_stop(&self) -> bool;

    /// Takes in a step that was logged, on rank 0.
    fn logged(&mut self, record: &Record);

    /// Shows anew what there is: at the start of a run, and after each round of validation videos.
    fn refresh(&mut self);

    /// Begins to show how a denoising of so many steps goes; the result takes (steps done, of how many), and ends it when dropped.
    fn denoising(&self, steps: usize) -> Box<dyn Fn(usize, usize)>;
}
