//! Loss and gradients of a denoiser, optionally with the memory of a single segment.
//!
//! A denoiser is a list of segments: embedding, blocks, head. The forward pass keeps the input of each segment; the
//! backward pass visits them in reverse, runs each again with a tape, and passes it the gradient of its output
//! (arXiv:1604.06174). A [`SavedActivations`] decides what else is kept in between: the outputs of attention, which
//! take the longest to recompute, and everything that the backward pass of some blocks reads, so that these are not run
//! again at all. The last block never is: its backward pass starts right after its forward pass. The inputs themselves may
//! be parked elsewhere ([`super::offload`]).
//!
//! No gradient is computed before the first adapter: if the embedding has none, its outputs are not variables.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use candle_core::{Device, Result, Tensor, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::offload::{HostMemory, OffloadTo, ParkedState, Parking};
use crate::models::denoiser::{Denoiser, Input, State};
use crate::ops::tape::{Gradients, SavedOutputs, Tape, no_grad, record, record_from, record_sparing, save_costly};
use crate::ops::vjp::Cotangent;

/// Activations kept between the passes besides each segment's input. They never change a single bit of the gradients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SavedActivations {
    /// Everything: fastest, and the most memory.
    All,
    /// Activations that fit into these bytes.
    Within(ActivationBudget),
    /// Nothing; and the segments' inputs are parked there.
    Offloaded(OffloadTo),
}

/// Bytes for activations kept between the passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ActivationBudget {
    /// Bytes for attention's outputs.
    pub attention: usize,
    /// Bytes for everything that whole blocks need, the first blocks first.
    pub blocks: usize,
    /// Blocks like the one at hand that these bytes must have room for besides, since one that is run again needs as much.
    pub spare_blocks: usize,
}

/// Memory that activations may be kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeMemory {
    /// It is unknown how much there is.
    Unknown,
    /// Main memory, which everything else on the machine needs as well.
    Main(u64),
    /// The memory of a GPU.
    Gpu(u64),
}

impl FreeMemory {
    /// Memory of the device at hand.
    pub fn of(device: &Device, free: Option<u64>) -> Self {
        match free {
            None => Self::Unknown,
            Some(free) if device.is_cpu() => Self::Main(free),
            Some(free) => Self::Gpu(free),
        }
    }

    /// Returns the budget of `auto`.
    fn budget(self) -> ActivationBudget {
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        match self {
            Self::Unknown => ActivationBudget {
                attention: usize::MAX,
                ..Default::default()
            },
            Self::Main(free) => ActivationBudget {
                attention: bytes(free / 8),
                blocks: bytes(free / 128),
                spare_blocks: 0,
            },
            Self::Gpu(free) => ActivationBudget {
                attention: bytes(free / 8),
                blocks: bytes(free / 8 * 5),
                spare_blocks: 2,
            },
        }
    }
}

impl SavedActivations {
    /// Runs every block again, however much memory there is: if ranks share blocks, all must run the same ones.
    pub fn without_blocks(self) -> Self {
        match self {
            Self::All => Self::All,
            Self::Within(room) => Self::Within(ActivationBudget { blocks: 0, ..room }),
            Self::Offloaded(to) => Self::Offloaded(to),
        }
    }
}

/// `train.activation_policy`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ActivationPolicy {
    /// Attention's outputs within an eighth of the free memory, and whole blocks within a 128th, on a GPU within five eighths;
    /// `inputs`, or else `offloaded`, where the run is planned not to fit so.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// Everything, as with `gradient_checkpointing: false`.
    #[serde(rename = "all")]
    All,
    /// The input of each block, and the outputs of attention.
    #[serde(rename = "inputs+attention")]
    InputsAndAttention,
    /// The input of each block.
    #[serde(rename = "inputs")]
    Inputs,
    /// Only the text and what else blocks share; the input of each block is parked, on the CPU in a temporary file in
    /// `output_dir`, on a GPU in main memory: the least memory, whatever the number of blocks.
    #[serde(rename = "offloaded")]
    Offloaded,
}

impl ActivationPolicy {
    /// Returns the activations to keep with this much memory free. What is offloaded goes to main memory.
    pub fn saved_activations(self, free: FreeMemory) -> SavedActivations {
        SavedActivations::Within(match self {
            Self::All => return SavedActivations::All,
            Self::Auto => free.budget(),
            Self::InputsAndAttention => FreeMemory::Unknown.budget(),
            Self::Inputs => ActivationBudget::default(),
            Self::Offloaded => return SavedActivations::Offloaded(OffloadTo::HostMemory(HostMemory::default())),
        })
    }
}

/// Function from a prediction to a scalar loss.
pub type Loss<'a> = dyn Fn(&Tensor) -> Result<Tensor> + 'a;

/// Result of one forward and backward pass.
#[derive(Debug)]
pub struct LossAndGrads {
    /// A scalar, f32.
    pub loss: Tensor,
    /// Gradient of each variable, in order; None if the loss does not depend on it.
    pub gradients: Vec<Option<Tensor>>,
    /// Time until the loss was computed; on a GPU, until it was queued.
    pub forward: Duration,
    /// Bytes that were kept on the device for the backward pass when it began: inputs of segments, tapes, saved outputs.
    pub kept_bytes: usize,
}

/// Runs the denoiser on `input`, applies `loss` to its prediction, and differentiates by `vars`.
pub fn forward_backward(
    denoiser: &dyn Denoiser,
    input: &Input,
    loss: &Loss,
    vars: &[Var],
    saved: SavedActivations,
) -> Result<LossAndGrads> {
    match saved {
        SavedActivations::All => at_once(denoiser, input, loss, vars),
        SavedActivations::Within(room) => by_segments(denoiser, input, loss, vars, Keeping { room, parking: None }),
        SavedActivations::Offloaded(to) => {
            let keeping = Keeping {
                room: ActivationBudget::default(),
                parking: Some(Parking::open(&to)?),
            };
            by_segments(denoiser, input, loss, vars, keeping)
        }
    }
}

fn at_once(denoiser: &dyn Denoiser, input: &Input, loss: &Loss, vars: &[Var]) -> Result<LossAndGrads> {
    let started = Instant::now();
    let (loss, tape) = record(|| loss(&denoiser.forward(input)?))?;
    let forward = started.elapsed();
    let kept_bytes = tape.bytes();
    let mut found = tape.backward(&[one(&loss)?])?;
    Ok(LossAndGrads {
        gradients: vars.iter().map(|var| found.remove(var)).collect::<Result<_>>()?,
        loss: loss.detach(),
        forward,
        kept_bytes,
    })
}

/// Activations that are kept of the segments, and their place.
struct Keeping {
    room: ActivationBudget,
    /// None: their inputs stay on the device.
    parking: Option<Parking>,
}

fn by_segments(
    denoiser: &dyn Denoiser,
    input: &Input,
    loss: &Loss,
    vars: &[Var],
    mut keeping: Keeping,
) -> Result<LossAndGrads> {
    let started = Instant::now();
    let mut cut = Boundary::before(no_grad(|| denoiser.embed(input))?)?;
    let stem_learns = cut.vars.iter().any(Option::is_some);
    let mut passed = Vec::new();
    for index in 0..denoiser.num_blocks() {
        let last = index + 1 == denoiser.num_blocks();
        let (state, kept) = keeping.room.run(last, || denoiser.block(index, &cut.state))?;
        let input = match &mut keeping.parking {
            Some(parking) if !last => SavedInput::Parked(parking.park(&cut.state, &state)?),
            _ => SavedInput::Here(cut),
        };
        passed.push((input, kept));
        cut = Boundary::before(state)?;
    }
    let kept_bytes = kept_bytes(&passed);
    let (loss, tape) = record(|| loss(&denoiser.head(&cut.state)?))?;
    let forward = started.elapsed();

    // Backward pass, dropping each block's input once it is done.
    let mut gradients = vec![None; vars.len()];
    let mut due = cut.collect(tape.backward(&[one(&loss)?])?, vars, &mut gradients)?;
    drop(cut);
    while let Some((before, kept)) = passed.pop() {
        if due.iter().all(Option::is_none) {
            break; // nothing before this is trained
        }
        let (index, before) = (passed.len(), before.boundary()?);
        if let Some((SavedInput::Parked(earlier), _)) = passed.last_mut() {
            earlier.read_ahead()?;
        }
        let (after, tape) = kept.again(|| denoiser.block(index, &before.state))?;
        due = before.collect(tape.backward(&given(&after, due))?, vars, &mut gradients)?;
    }
    if stem_learns {
        let (after, tape) = record(|| denoiser.embed(input))?;
        take(&mut tape.backward(&given(&after, due))?, vars, &mut gradients)?;
    }
    Ok(LossAndGrads {
        loss: loss.detach(),
        gradients,
        forward,
        kept_bytes,
    })
}

/// Input of a block between the passes.
enum SavedInput {
    /// On the device.
    Here(Boundary),
    /// Parked elsewhere.
    Parked(ParkedState),
}

impl SavedInput {
    fn boundary(self) -> Result<Boundary> {
        match self {
            Self::Here(boundary) => Ok(boundary),
            Self::Parked(parked) => Boundary::before(parked.state()?),
        }
    }
}

/// Returns the bytes kept of blocks, inputs that several share once.
fn kept_bytes(passed: &[(SavedInput, SavedBlock)]) -> usize {
    let mut inputs = HashMap::new();
    for (input, _) in passed {
        let tensors = match input {
            SavedInput::Here(boundary) => boundary.state.tensors(),
            SavedInput::Parked(parked) => parked.kept().cloned().collect(),
        };
        for tensor in tensors {
            let (storage, _) = tensor.storage_and_layout();
            inputs.insert(
                &raw const *storage,
                tensor.elem_count() * tensor.dtype().size_in_bytes(),
            );
        }
    }
    let others = passed.iter().map(|(_, kept)| match kept {
        SavedBlock::Whole(_, tape) => tape.bytes(),
        SavedBlock::Part(saved) => saved.bytes(),
    });
    inputs.values().sum::<usize>() + others.sum::<usize>()
}

/// Saved activations of a block.
enum SavedBlock {
    /// Everything: its output, and the tape.
    Whole(State, Tape),
    /// The outputs of attention, if any.
    Part(SavedOutputs),
}

impl ActivationBudget {
    /// Runs a block and keeps as much as fits; everything of the last one.
    fn run(&mut self, last: bool, block: impl FnOnce() -> Result<State>) -> Result<(State, SavedBlock)> {
        if last || self.blocks > 0 {
            let (state, tape) = record_sparing(block)?;
            let bytes = tape.bytes();
            let needed = bytes.saturating_mul(1 + self.spare_blocks);
            let fits = last || needed <= self.blocks;
            let left = self.blocks.saturating_sub(bytes);
            // The next one, which is likely as large, is not tried in vain: its attention may yet be kept.
            self.blocks = if fits && needed <= left { left } else { 0 };
            let kept = match fits {
                true => SavedBlock::Whole(state.clone(), tape),
                false => SavedBlock::Part(SavedOutputs::default()),
            };
            return Ok((state, kept));
        }
        if self.attention > 0 {
            let (state, saved) = save_costly(block)?;
            let fits = saved.bytes() <= self.attention;
            self.attention = if fits { self.attention - saved.bytes() } else { 0 };
            return Ok((
                state,
                SavedBlock::Part(if fits { saved } else { SavedOutputs::default() }),
            ));
        }
        Ok((no_grad(block)?, SavedBlock::Part(SavedOutputs::default())))
    }
}

impl SavedBlock {
    /// Returns the block's output and tape, running it again if they were not kept.
    fn again(self, block: impl FnOnce() -> Result<State>) -> Result<(State, Tape)> {
        match self {
            Self::Whole(after, tape) => Ok((after, tape)),
            Self::Part(saved) => record_from(saved, block),
        }
    }
}

/// A state at which the graph is cut: if something before it is trained, its tensors are variables of their own.
struct Boundary {
    state: State,
    /// Variable of each of the state's tensors; None if nothing before it is trained.
    vars: Vec<Option<Var>>,
}

impl Boundary {
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
    fn collect(
        &self,
        mut found: Gradients,
        vars: &[Var],
        gradients: &mut [Option<Tensor>],
    ) -> Result<Vec<Option<Tensor>>> {
        take(&mut found, vars, gradients)?;
        let own = self.vars.iter();
        own.map(|var| var.as_ref().map_or(Ok(None), |var| found.remove(var)))
            .collect()
    }
}

/// An adapter belongs to one layer, and so to one segment: its gradient there is complete.
fn take(found: &mut Gradients, vars: &[Var], gradients: &mut [Option<Tensor>]) -> Result<()> {
    for (var, gradient) in vars.iter().zip(gradients) {
        if let Some(found) = found.remove(var)? {
            *gradient = Some(found);
        }
    }
    Ok(())
}

/// Pairs a segment's outputs with their gradients.
fn given(after: &State, due: Vec<Option<Tensor>>) -> Vec<Cotangent> {
    let pairs = after.tensors().into_iter().zip(due);
    pairs
        .filter_map(|(output, due)| {
            let gradient = due?;
            Some(Cotangent { output, gradient })
        })
        .collect()
}

/// Seed of the backward pass: the loss with gradient 1.
fn one(loss: &Tensor) -> Result<Cotangent> {
    Ok(Cotangent {
        output: loss.clone(),
        gradient: loss.ones_like()?.detach(),
    })
}
