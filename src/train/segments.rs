//! Loss and gradients of a denoiser, with the memory of one segment where that is asked for.
//!
//! A denoiser is a list of segments: stem, blocks, head. With [`Keep::Inputs`] the forward pass keeps only what each
//! segment receives; the backward pass goes through them in reverse, runs each once more with its graph on, and hands it
//! the gradient of its output.  arXiv:1604.06174
//!
//! No gradient is computed for what no adapter precedes: where the stem has none, its outputs are no variables.

use std::time::{Duration, Instant};

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

use crate::models::denoiser::{Denoiser, Input, State};
use crate::ops::chain::{Given, chain};

/// What is kept between the passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything: fastest, and the most memory.
    All,
    /// What each segment receives; the rest is computed a second time.
    Inputs,
}

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
    loss: &dyn Fn(&Tensor) -> Result<Tensor>,
    vars: &[Var],
    keep: Keep,
) -> Result<Passed> {
    match keep {
        Keep::All => {
            let started = Instant::now();
            let loss = loss(&denoiser.forward(input)?)?;
            let forward = started.elapsed();
            let mut store = loss.backward()?;
            let gradients = vars.iter().map(|var| store.remove(var)).collect();
            Ok(Passed {
                loss: loss.detach(),
                gradients,
                forward,
            })
        }
        Keep::Inputs => by_segments(denoiser, input, loss, vars),
    }
}

fn by_segments(
    denoiser: &dyn Denoiser,
    input: &Input,
    loss: &dyn Fn(&Tensor) -> Result<Tensor>,
    vars: &[Var],
) -> Result<Passed> {
    let started = Instant::now();
    // Forwards: each segment's graph is dropped as soon as the next one has its input.
    let stem = Cut::before(denoiser.stem(input)?)?;
    let stem_learns = stem.vars.iter().any(Option::is_some);
    let mut received = vec![stem];
    for index in 0..denoiser.num_blocks() {
        let state = denoiser.block(index, &received[index].state)?;
        received.push(Cut::before(state)?);
    }

    // Backwards, letting go of each input once its segment is done.
    let mut gradients = vec![None; vars.len()];
    let last = received.pop().expect("the stem's output at least");
    let loss = loss(&denoiser.head(&last.state)?)?;
    let forward = started.elapsed();
    let mut due = last.collect(loss.backward()?, vars, &mut gradients);
    for index in (0..denoiser.num_blocks()).rev() {
        let before = received.pop().expect("one input for each block");
        let after = denoiser.block(index, &before.state)?;
        due = match backward(&after, &due)? {
            Some(store) => before.collect(store, vars, &mut gradients),
            None => break, // nothing before this learns
        };
    }
    if stem_learns && let Some(mut store) = backward(&denoiser.stem(input)?, &due)? {
        take(&mut store, vars, &mut gradients);
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

    /// Moves the adapters' gradients out of the store; returns those of the state's own tensors.
    fn collect(&self, mut store: GradStore, vars: &[Var], gradients: &mut [Option<Tensor>]) -> Vec<Option<Tensor>> {
        take(&mut store, vars, gradients);
        let own = self.vars.iter();
        own.map(|var| var.as_ref().and_then(|var| store.remove(var))).collect()
    }
}

/// An adapter belongs to one layer, and so to one segment: its gradient there is all of it.
fn take(store: &mut GradStore, vars: &[Var], gradients: &mut [Option<Tensor>]) {
    for (var, gradient) in vars.iter().zip(gradients) {
        if let Some(found) = store.remove(var) {
            *gradient = Some(found);
        }
    }
}

/// The chain rule over one segment, from the gradients of what it gave; none where it gave nothing that learns.
fn backward(after: &State, due: &[Option<Tensor>]) -> Result<Option<GradStore>> {
    let given = after.tensors().into_iter().zip(due).filter_map(|(output, due)| {
        let gradient = due.clone()?;
        Some(Given { output, gradient })
    });
    chain(&given.collect::<Vec<_>>())
}
