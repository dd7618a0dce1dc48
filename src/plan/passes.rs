//! Passes of a transformer, and what is known of one: its memory.

use serde::Serialize;

use super::timeline::Level;
use crate::data::Bucket;
use crate::nn::weights::BlockBytes;
use crate::train::segments::{ActivationBudget, SavedActivations};

/// Clips that it runs on at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Clips {
    /// Size of each.
    pub bucket: Bucket,
    /// Number.
    pub count: usize,
}

/// Activations kept between the passes, of every block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retained {
    /// Everything.
    All,
    /// The input, and the outputs of attention.
    Attention,
    /// The input.
    Inputs,
}

impl Retained {
    /// Returns it as settings of a pass.
    pub(super) fn saved(self) -> SavedActivations {
        let within = |attention| {
            SavedActivations::Within(ActivationBudget {
                attention,
                ..Default::default()
            })
        };
        match self {
            Self::All => SavedActivations::All,
            Self::Attention => within(usize::MAX),
            Self::Inputs => within(0),
        }
    }
}

/// Work of a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// A prediction without gradients.
    Forward,
    /// Loss and gradients.
    Training(Retained),
    /// The beginning of that, up to the end of the block that others are like, which shows what it keeps of that one.
    TrainingForward(Retained),
}

/// Bytes that a transformer holds, whatever it does.
#[derive(Debug, Clone)]
pub struct Holdings {
    /// Weights of each block.
    pub blocks: Vec<BlockBytes>,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Numbers of each matrix of the adapters.
    pub adapters: Vec<usize>,
}

/// Memory of a transformer at work.
#[derive(Debug, Clone)]
pub struct Denoising {
    /// Weights and adapters.
    pub held: Holdings,
    /// Bytes of the input and the target.
    pub input_bytes: u64,
    /// Level over weights, adapters and input.
    pub level: Level,
    /// Bytes that the pass keeps of a block that others are like, in the forward pass; of the first one, if none is.
    pub block_keeps: f64,
}
