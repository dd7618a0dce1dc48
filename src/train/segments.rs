//! Loss and gradients of a denoiser, with the memory of one segment where that is asked for.
//!
//! A denoiser is a list of segments: stem, blocks, head. The forward pass keeps what each segment receives; the backward
//! pass goes through them in reverse, runs each once more with a tape on, and hands it the gradient of its output
//! (arXiv:1604.06174). A [`Keep`] says what else stays in between: the outputs of attention, which take the longest to
//! compute again, and all that some blocks' way back reads, so that these are not run again at all. The last block never
//! is: its way back begins where its way forward ends.
//!
//! No gradient is computed for what no adapter precedes: where the stem has none, its outputs are no variables.

use std::time::{Duration, Instant};

use candle_core::{Result, Tensor, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::models::denoiser::{Denoiser, Input, State};
use crate::ops::chain::Given;
use crate::ops::tape::{Gradients, Shelf, Tape, forget, record, record_from, shelve};

/// What is kept between the passes besides each segment's input. Nothing of it changes a single bit of the gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything: fastest, and the most memory.
    All,
    /// As far as these bytes go.
    Within(Room),
}

/// Bytes for what is kept between the passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// For attention's outputs.
    pub attention: usize,
    /// For all that whole blocks need, the first ones first.
    pub blocks: usize,
}

impl Keep {
    /// With every block run again, however much room there is: where ranks share blocks out, all must run the same ones.
    pub fn without_blocks(self) -> Self {
        match self {
            Self::All => Self::All,
            Self::Within(room) => Self::Within(Room { blocks: 0, ..room }),
        }
    }
}

/// `train.keep`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Policy {
    /// Attention's outputs within an eighth of the memory that is free, and whole blocks within a 128th.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// Everything, as with `gradient_checkpointing: false`.
    #[serde(rename = "all")]
    All,
    /// What each block receives, and the outputs of attention.
    #[serde(rename = "inputs+attention")]
    InputsAndAttention,
    /// What each block receives: the least memory.
    #[serde(rename = "inputs")]
    Inputs,
}

impl Policy {
    /// With so many bytes of memory free; none where that is not known.
    pub fn keep(self, free: Option<u64>) -> Keep {
        let share = |part: u64| free.map_or(usize::MAX, |free| usize::try_from(free / part).unwrap_or(usize::MAX));
        let (attention, blocks) = match self {
            Self::All => return Keep::All,
            Self::Auto => (share(8), if free.is_some() { share(128) } else { 0 }),
            Self::InputsAndAttention => (usize::MAX, 0),
            Self::Inputs => (0, 0),
        };
        Keep::Within(Room { attention, blocks })
    }
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
        Keep::Within(room) => by_segments(denoiser, input, loss, vars, room),
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

fn by_segments(denoiser: &dyn Denoiser, input: &Input, loss: &Loss, vars: &[Var], mut room: Room) -> Result<Passed> {
    let started = Instant::now();
    let mut cut = Cut::before(forget(|| denoiser.stem(input))?)?;
    let stem_learns = cut.vars.iter().any(Option::is_some);
    let mut passed = Vec::new();
    for index in 0..denoiser.num_blocks() {
        let last = index + 1 == denoiser.num_blocks();
        let (state, kept) = room.run(last, || denoiser.block(index, &cut.state))?;
        passed.push((cut, kept));
        cut = Cut::before(state)?;
    }
    let (loss, tape) = record(|| loss(&denoiser.head(&cut.state)?))?;
    let forward = started.elapsed();

    // Backwards, letting go of each block's input once it is done.
    let mut gradients = vec![None; vars.len()];
    let mut due = cut.collect(tape.backward(&[one(&loss)?])?, vars, &mut gradients);
    drop(cut);
    for (index, (before, kept)) in passed.into_iter().enumerate().rev() {
        if due.iter().all(Option::is_none) {
            break; // nothing before this learns
        }
        let (after, tape) = kept.again(|| denoiser.block(index, &before.state))?;
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

/// What is kept of a block that was run.
enum Kept {
    /// All: what it gave, and the way back.
    Whole(State, Tape),
    /// The outputs of attention, if that.
    Part(Shelf),
}

impl Room {
    /// Runs a block and keeps of it what there is room for; all of the last one.
    fn run(&mut self, last: bool, block: impl FnOnce() -> Result<State>) -> Result<(State, Kept)> {
        if last || self.blocks > 0 {
            let (state, tape) = record(block)?;
            let bytes = tape.bytes();
            let fits = last || bytes <= self.blocks;
            self.blocks = if fits { self.blocks.saturating_sub(bytes) } else { 0 };
            let kept = match fits {
                true => Kept::Whole(state.clone(), tape),
                false => Kept::Part(Shelf::default()),
            };
            return Ok((state, kept));
        }
        if self.attention > 0 {
            let (state, shelf) = shelve(block)?;
            let fits = shelf.bytes() <= self.attention;
            self.attention = if fits { self.attention - shelf.bytes() } else { 0 };
            return Ok((state, Kept::Part(if fits { shelf } else { Shelf::default() })));
        }
        Ok((forget(block)?, Kept::Part(Shelf::default())))
    }
}

impl Kept {
    /// What the block gave and the way back, for which it is run again if they were not kept.
    fn again(self, block: impl FnOnce() -> Result<State>) -> Result<(State, Tape)> {
        match self {
            Self::Whole(after, tape) => Ok((after, tape)),
            Self::Part(shelf) => record_from(shelf, block),
        }
    }
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
