//! What a stretch of the forward pass did, op by op, and the way back through it.
//!
//! candle's own backward pass fills every gradient with zeros to add to it, holds all it has passed until it is through,
//! and keeps all that an op was given. A tape hands gradients on as they are, adds only where two meet, lets go of each op
//! as soon as it is passed, and keeps only what the op's way back reads.
//!
//! While [`record`] runs, what an op of this module gives is a leaf of candle's graph, and a line on the tape leads on from
//! it. What is computed between two ops by candle itself is differentiated by candle; a tensor that only shows another's
//! numbers in another shape costs nothing. So models are written as if there were no tape.
//!
//! A stretch may be run twice: first for its result alone ([`forget`], [`shelve`]), and once more when its gradient is due.
//! What costs most may stay on a [`Shelf`] in between, so that the second time it is only taken down.
//!
//! The tape of a thread is found by its ops without being handed through every layer; it lives as long as `record`.

mod apply;
mod gradients;
mod shelf;

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::{Result, Storage, Tensor, TensorId, bail};

use super::chain::Given;
pub use apply::{Reads, apply1, apply2, apply3, apply3_costly};
pub use gradients::Gradients;
use gradients::Source;
pub use shelf::{Costly, Left, Shelf};

thread_local! {
    static MODE: RefCell<Mode> = const { RefCell::new(Mode::Candle) };
}

/// What ops leave behind for the way back.
#[derive(Default)]
enum Mode {
    /// What candle's own graph wants.
    #[default]
    Candle,
    /// Nothing: whether something learns still shows.
    Nothing,
    /// The results of what costs most.
    Shelf(Shelf),
    /// Lines of a tape, where results are taken from the shelf as long as there are some.
    Tape(Vec<Line>, Shelf),
}

/// The ops that ran while it was recorded.
pub struct Tape(Vec<Line>);

/// One op that was run.
struct Line {
    output: TensorId,
    /// Where the gradients of its inputs go; none where nobody wants one.
    sources: Vec<Option<Source>>,
    /// Memory that the way back holds: where it lies, and how much.
    holds: Vec<(*const Storage, usize)>,
    /// From the gradient of the output to those of the inputs.
    back: Box<Back>,
}

type Back = dyn FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>>;

/// Runs `compute` and notes its ops.
///
/// # Errors
/// Those of `compute`.
pub fn record<T>(compute: impl FnOnce() -> Result<T>) -> Result<(T, Tape)> {
    record_from(Shelf::default(), compute)
}

/// The same for the second time, with the shelf of the first.
///
/// # Errors
/// Those of `compute`; a shelf of something else.
pub fn record_from<T>(shelf: Shelf, compute: impl FnOnce() -> Result<T>) -> Result<(T, Tape)> {
    match within(Mode::Tape(Vec::new(), shelf), compute)? {
        (value, Mode::Tape(lines, shelf)) if shelf.is_empty() => Ok((value, Tape(lines))),
        _ => bail!("the second time, something else was run than the first"),
    }
}

/// Runs `compute` for its result alone: no way leads back through its ops, and nothing is kept for one. Where something
/// learns, the result is a variable.
///
/// # Errors
/// Those of `compute`.
pub fn forget<T>(compute: impl FnOnce() -> Result<T>) -> Result<T> {
    Ok(within(Mode::Nothing, compute)?.0)
}

/// As [`forget`], but for what costs most.
///
/// # Errors
/// Those of `compute`.
pub fn shelve<T>(compute: impl FnOnce() -> Result<T>) -> Result<(T, Shelf)> {
    match within(Mode::Shelf(Shelf::default()), compute)? {
        (value, Mode::Shelf(shelf)) => Ok((value, shelf)),
        (value, _) => Ok((value, Shelf::default())),
    }
}

/// Runs `compute` in a mode, and what the mode came to.
fn within<T>(mode: Mode, compute: impl FnOnce() -> Result<T>) -> Result<(T, Mode)> {
    /// Puts the mode around this back, also where `compute` panics.
    struct Around(Mode);
    impl Drop for Around {
        fn drop(&mut self) {
            MODE.set(std::mem::take(&mut self.0));
        }
    }
    let _around = Around(MODE.replace(mode));
    let value = compute()?;
    Ok((value, MODE.take()))
}

impl Tape {
    /// How much memory it holds, without what ops leave besides tensors.
    pub fn bytes(&self) -> usize {
        let held: HashMap<_, _> = self.0.iter().flat_map(|line| line.holds.iter().copied()).collect();
        held.values().sum()
    }

    /// The shapes of what ops were given that learns and that candle itself computed, in the order of the ops: each costs
    /// candle's passes over memory there and back.
    pub fn by_candle(&self) -> Vec<Vec<usize>> {
        let sources = self.0.iter().flat_map(|line| line.sources.iter().flatten());
        let stretches = sources.filter_map(|source| match source {
            Source::Leaf { .. } => None,
            Source::Stretch(end) => Some(end.dims().to_vec()),
        });
        stretches.collect()
    }

    /// From the gradients of outputs to those of all variables that they were computed from.
    ///
    /// # Errors
    /// A gradient of another shape than its output; what an op's way back refuses.
    pub fn backward(self, given: &[Given]) -> Result<Gradients> {
        let mut due = Gradients::default();
        for Given { output, gradient } in given {
            if output.dims() != gradient.dims() {
                bail!("an output {:?} with a gradient {:?}", output.dims(), gradient.dims());
            }
            due.hand_on(Source::of(output), gradient.clone())?;
        }
        for line in self.0.into_iter().rev() {
            let Some(gradient) = due.remove_id(line.output) else {
                continue;
            };
            let gradients = (line.back)(&gradient.contiguous()?)?;
            for (source, gradient) in line.sources.into_iter().zip(gradients) {
                if let Some(gradient) = gradient {
                    due.hand_on(source, gradient)?;
                }
            }
        }
        Ok(due)
    }
}
