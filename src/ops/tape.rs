//! Records a segment of the forward pass op by op, and runs its backward pass.
//!
//! candle's own backward pass fills every gradient with zeros to add to it, holds all visited nodes until it ends, and
//! keeps every input of an op. A tape passes gradients on as they are, adds only where two meet, drops each op as soon
//! as it is processed, and keeps only what the op's backward pass reads.
//!
//! While [`record`] runs, the output of an op of this module is a leaf of candle's graph, and an entry on the tape
//! links it to its inputs. Work between two ops in candle itself is differentiated by candle; a view of another
//! tensor's numbers in another shape costs nothing. So models are written as if there were no tape.
//!
//! A tape is recorded for one of three purposes ([`Purpose`]), by which ops that can be run again keep less
//! ([`by_rows`]), or compute no output that nobody reads ([`Output`]).
//!
//! A segment may run twice: first for its result alone ([`no_grad`], [`save_costly`]), and again when its gradient is
//! needed. The costliest results may be kept as [`SavedOutputs`] in between, so that the second run only reads them.
//!
//! Ops find the tape through a thread-local, without passing it through every layer; it lives as long as `record`.

mod apply;
mod by_rows;
mod gradients;
mod saved;

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::{Result, Storage, Tensor, TensorId, bail};

use super::vjp::Cotangent;
pub use apply::{Output, Reads, apply1, apply1_for, apply2, apply3, apply3_costly, apply3_for};
pub use by_rows::{RowWise, by_rows};
use gradients::GradientKey;
pub use gradients::Gradients;
pub use saved::{Saveable, SavedOutputs, SavedState};

thread_local! {
    static MODE: RefCell<Mode> = const { RefCell::new(Mode::Candle) };
}

/// State that ops keep for the backward pass.
#[derive(Default)]
enum Mode {
    /// Everything candle's own graph needs.
    #[default]
    Candle,
    /// Nothing, except the flag that something is trained.
    Nothing,
    /// The results of the costliest ops.
    Save(SavedOutputs),
    /// Entries of a tape.
    Tape(Recording),
}

/// A tape that is recorded.
struct Recording {
    lines: Vec<Line>,
    /// Results come from here while there are any.
    saved: SavedOutputs,
    purpose: Purpose,
    /// Single numbers, one of each type, device and need of a gradient, that outlines are views of.
    outlines: Vec<Tensor>,
}

/// Purpose of a tape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Keeps everything: the backward pass runs nothing again.
    Speed,
    /// Keeps less of ops that can be run again in parts.
    Memory,
    /// Records a second run, whose outputs are known: besides their gradients, only their shapes are used.
    Gradients,
}

/// The ops that ran while recording.
pub struct Tape(Vec<Line>);

/// One op that ran.
struct Line {
    output: TensorId,
    /// Destinations of the gradients of its inputs; None if not needed.
    sources: Vec<Option<GradientKey>>,
    /// Memory held for the backward pass: address and bytes.
    holds: Vec<(*const Storage, usize)>,
    /// Maps the gradient of the output to those of the inputs.
    back: Box<Back>,
}

type Back = dyn FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>>;

/// Runs `compute` and records its ops.
///
/// # Errors
/// Those of `compute`.
pub fn record<T>(compute: impl FnOnce() -> Result<T>) -> Result<(T, Tape)> {
    record_with(SavedOutputs::default(), Purpose::Speed, compute)
}

/// Same as [`record`], and keeps less of ops that can be run again in parts.
///
/// # Errors
/// Those of `compute`.
pub fn record_sparing<T>(compute: impl FnOnce() -> Result<T>) -> Result<(T, Tape)> {
    record_with(SavedOutputs::default(), Purpose::Memory, compute)
}

/// Records the second run, with the saved outputs of the first. The value's tensors have their shapes and take
/// gradients, but not all have their numbers.
///
/// # Errors
/// Those of `compute`; saved outputs of a different computation.
pub fn record_from<T>(saved: SavedOutputs, compute: impl FnOnce() -> Result<T>) -> Result<(T, Tape)> {
    record_with(saved, Purpose::Gradients, compute)
}

fn record_with<T>(saved: SavedOutputs, purpose: Purpose, compute: impl FnOnce() -> Result<T>) -> Result<(T, Tape)> {
    let recording = Recording {
        lines: Vec::new(),
        saved,
        purpose,
        outlines: Vec::new(),
    };
    match within(Mode::Tape(recording), compute)? {
        (value, Mode::Tape(Recording { lines, saved, .. })) if saved.is_empty() => Ok((value, Tape(lines))),
        _ => bail!("the recomputation ran other ops than the first run"),
    }
}

/// Runs `compute` for its result alone: no gradient passes through its ops, and nothing is kept. If something is
/// trained, the result is a variable.
///
/// # Errors
/// Those of `compute`.
pub fn no_grad<T>(compute: impl FnOnce() -> Result<T>) -> Result<T> {
    Ok(within(Mode::Nothing, compute)?.0)
}

/// Same as [`no_grad`], but keeps the outputs of the costliest ops.
///
/// # Errors
/// Those of `compute`.
pub fn save_costly<T>(compute: impl FnOnce() -> Result<T>) -> Result<(T, SavedOutputs)> {
    match within(Mode::Save(SavedOutputs::default()), compute)? {
        (value, Mode::Save(saved)) => Ok((value, saved)),
        (value, _) => Ok((value, SavedOutputs::default())),
    }
}

/// Runs `compute` in a mode, and returns the mode's final state.
fn within<T>(mode: Mode, compute: impl FnOnce() -> Result<T>) -> Result<(T, Mode)> {
    /// Restores the previous mode, also if `compute` panics.
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

/// Returns the purpose of the tape that is recorded, if any.
fn purpose() -> Option<Purpose> {
    MODE.with_borrow(|mode| match mode {
        Mode::Tape(recording) => Some(recording.purpose),
        Mode::Candle | Mode::Nothing | Mode::Save(_) => None,
    })
}

impl Tape {
    /// Returns the bytes held, without what ops keep besides tensors.
    pub fn bytes(&self) -> usize {
        let held: HashMap<_, _> = self.0.iter().flat_map(|line| line.holds.iter().copied()).collect();
        held.values().sum()
    }

    /// Returns the shapes of trained op inputs that candle itself computed, in the order of the ops: each costs
    /// candle's passes over memory forward and backward.
    pub fn by_candle(&self) -> Vec<Vec<usize>> {
        let sources = self.0.iter().flat_map(|line| line.sources.iter().flatten());
        let stretches = sources.filter_map(|source| match source {
            GradientKey::Leaf { .. } | GradientKey::Part { .. } => None,
            GradientKey::Stretch(end) => Some(end.dims().to_vec()),
        });
        stretches.collect()
    }

    /// Maps the gradients of outputs to those of all variables that they were computed from.
    ///
    /// # Errors
    /// Fails for a gradient of another shape than its output, and if an op's backward pass fails.
    pub fn backward(self, given: &[Cotangent]) -> Result<Gradients> {
        let mut due = Gradients::default();
        for Cotangent { output, gradient } in given {
            if output.dims() != gradient.dims() {
                bail!("an output {:?} with a gradient {:?}", output.dims(), gradient.dims());
            }
            due.hand_on(GradientKey::of(output), gradient.clone())?;
        }
        for line in self.0.into_iter().rev() {
            let Some(gradient) = due.remove_id(line.output)? else {
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
