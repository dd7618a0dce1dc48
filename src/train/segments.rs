//! Loss and gradients of a denoiser, with the memory of one segment where that is asked for.
//!
//! A denoiser is a list of segments: stem, blocks, head. With [`Keep::Inputs`] the forward pass keeps only what each
//! segment receives; the backward pass goes through them in reverse, runs each once more with its graph on, and hands it
//! the gradient of its output.  arXiv:1604.06174
//!
//! No gradient is computed for what no adapter precedes: where the stem has none, its outputs are no variables.

use std::time::{Duration, Instant};

use candle_core::{Result, Tensor, Var};

use crate::models::denoiser::{Denoiser, Input, State};
use crate::ops::chain::Given;
use crate::ops::tape::{Gradients, forget, record};

/// What is kept between the passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything: fastest, and the most memory.
    All,
    /// What each segment receives; the rest is computed a second time.
    Inputs,
}

/// From a prediction to a scalar.
pub type Loss<'a> = dyn Fn(&Tensor) -> Result<Tensor> + 'a;

/// What one pass forwards and back gives.
#[derive(Debug)]
pub struct Passed {
    /// A scalar, f32.
    pub loss: Tensor,
    /// One for each variable, in their order; none where the loss does not depend on it.
    pub gradients: Vec<Option<Tensor>>,
    /// How long it took until the loss was there; on a GPU, until it was asked for.
    pub forward: Duration,
}

/// Runs the denoiser on `input`, measures its prediction by `loss`, and differentiates by `vars`.
pub fn forward_backward(
    denoiser: &dyn Denoiser,
    input: &Input,
    loss: &Loss,
    vars: &[Var],
    keep: Keep,
) -> Result<Passed> {
    match keep {
        Keep::All => at_once(denoiser, input, loss, vars),
        Keep::Inputs => by_segments(denoiser, input, loss, vars),
    }
}

fn at_once(denoiser: &dyn Denoiser, input: &Input, loss: &Loss, vars: &[Var]) -> Result<Passed> {
    let started = Instant::now();
    let (loss, tape) = record(|| loss(&denoiser.forward(input)?))?;
    let forward = started.elapsed();
    let mut found = tape.backward(&[one(&loss)?])?;
    Ok(Passed {
        gradients: vars.iter().map(|var| found.remove(var)).collect(),
        loss: loss.detach(),
        forward,
    })
}

fn by_segments(denoiser: &dyn Denoiser, input: &Input, loss: &Loss, vars: &[Var]) -> Result<Passed> {
    let started = Instant::now();
    // Forwards: nothing is kept but what each segment receives.
    let stem = Cut::before(forget(|| denoiser.stem(input))?)?;
    let stem_learns = stem.vars.iter().any(Option::is_some);
    let mut received = vec![stem];
    for index in 0..denoiser.num_blocks() {
        let state = forget(|| denoiser.block(index, &received[index].state))?;
        received.push(Cut::before(state)?);
    }

    // Backwards, letting go of each input once its segment is done.
    let mut gradients = vec![None; vars.len()];
    let last = received.pop().expect("the stem's output at least");
    let (loss, tape) = record(|| loss(&denoiser.head(&last.state)?))?;
    let forward = started.elapsed();
    let mut due = last.collect(tape.backward(&[one(&loss)?])?, vars, &mut gradients);
    for index in (0..denoiser.num_blocks()).rev() {
        if due.iter().all(Option::is_none) {
            break; // nothing before this learns
        }
        let before = received.pop().expect("one input for each block");
        let (after, tape) = record(|| denoiser.block(index, &before.state))?;
        due = before.collect(tape.backward(&given(&after, due))?, vars, &mut gradients);
    }
    if stem_learns {
        let (after, tape) = record(|| denoiser.stem(input))?;
        take(&mut tape.backward(&given(&after, due))?, vars, &mut gradients);
    }
    Ok(Passed {
        loss: loss.detach(),
        gradients,
        forward,
    })
}

/// A state at which the graph is cut: where something before it learns, its tensors are variables of their own.
struct Cut {
    state: State,
    /// Of each of the state's tensors; none where nothing before it learns.
    vars: Vec<Option<Var>>,
}

impl Cut {
    fn before(state: State) -> Result<Self> {
        let vars: Vec<Option<Var>> = state
            .tensors()
            .iter()
            .map(|tensor| tensor.track_op().then(|| Var::from_tensor(tensor)).transpose())
            .collect::<Result<_>>()?;
        let tensors = state.tensors().into_iter().zip(&vars);
        let tensors = tensors.map(|(tensor, var)| match var {
            Some(var) => var.as_tensor().clone(),
            None => tensor,
        });
        let state = state.with_tensors(tensors.collect())?;
        Ok(Self { state, vars })
    }

    /// Moves the adapters' gradients out of those found; returns those of the state's own tensors.
    fn collect(&self, mut found: Gradients, vars: &[Var], gradients: &mut [Option<Tensor>]) -> Vec<Option<Tensor>> {
        take(&mut found, vars, gradients);
        let own = self.vars.iter();
        own.map(|var| var.as_ref().and_then(|var| found.remove(var))).collect()
    }
}

/// An adapter belongs to one layer, and so to one segment: its gradient there is all of it.
fn take(found: &mut Gradients, vars: &[Var], gradients: &mut [Option<Tensor>]) {
    for (var, gradient) in vars.iter().zip(gradients) {
        if let Some(found) = found.remove(var) {
            *gradient = Some(found);
        }
    }
}

/// What a segment gave, and the gradients that are due of it.
fn given(after: &State, due: Vec<Option<Tensor>>) -> Vec<Given> {
    let pairs = after.tensors().into_iter().zip(due);
    pairs
        .filter_map(|(output, due)| {
            let gradient = due?;
            Some(Given { output, gradient })
        })
        .collect()
}

/// The loss, by which everything is differentiated.
fn one(loss: &Tensor) -> Result<Given> {
    Ok(Given {
        output: loss.clone(),
        gradient: loss.ones_like()?.detach(),
    })
}
