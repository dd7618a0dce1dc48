//! Memory of training: weights, adapters with the optimiser's state, and the activations of a micro-batch, of which the
//! largest counts.

use serde::Serialize;

use super::denoising::{Clips, Denoising, Holdings, Pass, Retained, Transformer};
use super::timeline::Place;
use crate::config::RunConfig;
use crate::models::Offload;
use crate::nn::residency::ResidentShare;
use crate::optim::moments::MomentForm;
use crate::train::segments::{ActivationBudget, ActivationPolicy, FreeMemory, SavedActivations};

/// Bytes of a number of an adapter, of its gradient, and of a moment that is kept as it is.
const NUMBER: u64 = 4;

/// Memory of a stage of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Peak on the device that computes.
    pub peak_bytes: u64,
    /// Peak in main memory; the same on the CPU.
    pub host_bytes: u64,
}

/// Memory of training, and of what it is made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    /// All of it.
    #[serde(flatten)]
    pub memory: Memory,
    /// Frozen weights on the device.
    pub weight_bytes: u64,
    /// Those of blocks among them.
    pub block_bytes: u64,
    /// Adapters.
    pub adapter_bytes: u64,
    /// State of the optimiser, the adapters' average and the sum of gradients.
    pub optimizer_bytes: u64,
    /// Micro-batch, activations and gradients.
    pub activation_bytes: u64,
    /// Clips of the micro-batch that takes the most.
    pub clips: Clips,
}

impl Training {
    /// Adds up a training step that keeps so many bytes of activations besides those of the step itself, and parks others
    /// elsewhere.
    fn new(config: &RunConfig, clips: Clips, step: &Denoising, kept: u64, (place, ranks): (Place, usize)) -> Self {
        let standing = Standing::new(config, &step.held, ranks);
        let parked = parked(config, step, standing.adapter_bytes);
        let activation_bytes = step.input_bytes + (step.level.peak as u64 + kept).saturating_sub(parked);
        let peak_bytes = standing.bytes() + activation_bytes;
        let Standing {
            weights,
            adapter_bytes,
            optimizer_bytes,
        } = standing;
        Self {
            memory: Memory {
                peak_bytes,
                host_bytes: match place {
                    Place::Host { .. } => peak_bytes,
                    Place::Gpu => weights.elsewhere,
                },
            },
            weight_bytes: weights.all,
            block_bytes: weights.blocks,
            adapter_bytes,
            optimizer_bytes,
            activation_bytes,
            clips,
        }
    }
}

/// Memory that stays between the steps of training, on the device.
pub(super) struct Standing {
    weights: Resident,
    adapter_bytes: u64,
    optimizer_bytes: u64,
}

impl Standing {
    /// Adds up what a transformer holds, whose blocks are shared by so many ranks, and what learns.
    pub fn new(config: &RunConfig, held: &Holdings, ranks: usize) -> Self {
        let numbers: u64 = held.adapters.iter().map(|count| *count as u64).sum();
        let adapter_bytes = NUMBER * numbers;
        let averaged = u64::from(config.optimizer.ema.is_some());
        let summed = u64::from(config.train.gradient_accumulation_steps > 1);
        let moments: u64 = held.adapters.iter().map(|count| moment_bytes(config, *count)).sum();
        Self {
            weights: Resident::new(config, held, ranks),
            adapter_bytes,
            optimizer_bytes: moments + (averaged + summed) * adapter_bytes,
        }
    }

    /// Returns all of it.
    pub fn bytes(&self) -> u64 {
        self.weights.all + self.adapter_bytes + self.optimizer_bytes
    }
}

/// Weights on the device.
pub(super) struct Resident {
    /// Bytes of all of them.
    pub all: u64,
    /// Bytes of blocks.
    blocks: u64,
    /// Those that wait in main memory.
    pub elsewhere: u64,
}

impl Resident {
    /// Weights of a transformer whose blocks are shared by so many ranks. Those in few bits are not.
    pub fn new(config: &RunConfig, held: &Holdings, ranks: usize) -> Self {
        let sharing = match config.model.quantization.form() {
            None => ranks.max(1) as u64,
            Some(_) => 1,
        };
        let sizes = held.blocks.iter().map(|block| block.bytes as u64);
        let (inside, largest) = (sizes.clone().sum::<u64>(), sizes.max().unwrap_or(0));
        let outside = held.weight_bytes.saturating_sub(inside);
        // The block that runs, and the next one.
        let gathered = match sharing {
            1 => 0,
            _ => (super::SLOTS * largest).min(inside),
        };
        let (inside, largest) = (inside / sharing, largest / sharing);
        let (blocks, elsewhere) = match (config.model.offload, config.model.offload_resident) {
            (Offload::None | Offload::Auto | Offload::Model, _) => (inside, 0),
            (Offload::Group, share) => {
                let share = match share {
                    ResidentShare::Auto => 0.0, // at least; more of them where there is room
                    ResidentShare::Share(share) => share,
                };
                let staying = (inside as f64 * share) as u64;
                (
                    staying + (super::SLOTS * largest).min(inside - staying),
                    inside - staying,
                )
            }
        };
        let blocks = blocks + gathered;
        Self {
            all: outside + blocks,
            blocks,
            elsewhere,
        }
    }
}

/// Returns the bytes that inputs of blocks in a file or in main memory, all but two, take off the peak: that is where the way back
/// begins, with all of them; without them, it is where that ends, with the `gradients` of all blocks in their place.
fn parked(config: &RunConfig, step: &Denoising, gradients: u64) -> u64 {
    let parks = config.train.gradient_checkpointing && config.train.activation_policy == ActivationPolicy::Offloaded;
    let blocks = step.held.blocks.len().saturating_sub(2);
    if parks {
        ((step.block_keeps * blocks as f64) as u64).saturating_sub(gradients)
    } else {
        0
    }
}

/// Returns the bytes of the moments of a variable of so many numbers.
fn moment_bytes(config: &RunConfig, count: usize) -> u64 {
    MomentForm::of(config.optimizer.name, count).bytes(count)
}

/// Activations that a run keeps.
pub fn kept(config: &RunConfig) -> Option<Retained> {
    match (config.train.gradient_checkpointing, config.train.activation_policy) {
        (false, _) | (_, ActivationPolicy::All) => Some(Retained::All),
        (_, ActivationPolicy::InputsAndAttention) => Some(Retained::Attention),
        (_, ActivationPolicy::Inputs | ActivationPolicy::Offloaded) => Some(Retained::Inputs),
        (_, ActivationPolicy::Auto) => None,
    }
}

/// Returns the least memory of a training step on these clips: that which keeps no more than `auto` has to.
///
/// # Errors
/// Those of the transformer's files.
pub fn least(config: &RunConfig, transformer: &Transformer, clips: Clips) -> anyhow::Result<Training> {
    let step = transformer.memory(clips, Pass::Training(kept(config).unwrap_or(Retained::Inputs)))?;
    Ok(Training::new(
        config,
        clips,
        &step,
        0,
        (transformer.place, transformer.ranks),
    ))
}

/// Returns the memory of a training step on these clips, where `free` bytes are for the run before it loads anything;
/// None if that is unknown.
///
/// # Errors
/// Those of the transformer's files.
pub fn training(
    config: &RunConfig,
    transformer: &Transformer,
    clips: Clips,
    free: Option<u64>,
) -> anyhow::Result<Training> {
    let pass = |kept| transformer.memory(clips, Pass::Training(kept));
    let step = pass(kept(config).unwrap_or(Retained::Inputs))?;
    let more = match kept(config) {
        Some(_) => 0,
        None => {
            let left = free.map(|free| free.saturating_sub(Resident::new(config, &step.held, transformer.ranks).all));
            let left = match (left, transformer.place) {
                (None, _) => FreeMemory::Unknown,
                (Some(left), Place::Host { .. }) => FreeMemory::Main(left),
                (Some(left), Place::Gpu) => FreeMemory::Gpu(left),
            };
            let [attention, all] =
                [Retained::Attention, Retained::All].map(|kept| transformer.memory(clips, Pass::TrainingForward(kept)));
            more_than_inputs(config, transformer.ranks, [&step, &*attention?, &*all?], left)
        }
    };
    Ok(Training::new(
        config,
        clips,
        &step,
        more,
        (transformer.place, transformer.ranks),
    ))
}

/// Returns the bytes that `auto` keeps besides the inputs of blocks: all of the first blocks, and attention's outputs of
/// those that follow, as far as there is room.
fn more_than_inputs(
    config: &RunConfig,
    ranks: usize,
    [inputs, attention, all]: [&Denoising; 3],
    free: FreeMemory,
) -> u64 {
    let SavedActivations::Within(room) = config.train.activation_policy.saved_activations(free) else {
        return 0;
    };
    let room = match (config.model.offload, ranks) {
        (Offload::None | Offload::Auto, 1) => room,
        _ => ActivationBudget { blocks: 0, ..room },
    };
    let of_block = |pass: &Denoising| (pass.block_keeps - inputs.block_keeps).max(0.0) as u64;
    let (whole, attention) = (all.block_keeps.max(0.0) as u64, of_block(attention));
    let fit = |room: usize, each: u64, spare: usize, most: u64| match each {
        0 => 0,
        each => (room as u64 / each).saturating_sub(spare as u64).min(most),
    };
    let count = (inputs.held.blocks.len() as u64).saturating_sub(1); // the last one is kept in any case
    let first = fit(room.blocks, whole, room.spare_blocks, count);
    first * whole + fit(room.attention, attention, 0, count - first) * attention
}
