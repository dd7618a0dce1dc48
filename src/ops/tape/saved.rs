//! Saved outputs: results kept between the two runs of a segment, because they take long to compute and little memory.

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::{CustomOp3, Tensor};
use half::bf16;

/// Results of costly ops in the order in which they ran.
#[derive(Default)]
pub struct SavedOutputs(VecDeque<SavedOutput>);

/// Output of a costly op, and its other state for the backward pass.
pub struct SavedOutput {
    pub output: Tensor,
    pub left: SavedState,
}

/// State that an op saves for its backward pass besides its output, on the op's device.
#[derive(Debug, Clone)]
pub enum SavedState {
    /// Numbers in main memory.
    Host(Arc<Vec<f32>>),
    /// Numbers of bf16 in main memory.
    HostNarrow(Arc<Vec<bf16>>),
    /// A tensor on the op's device.
    Device(Tensor),
}

/// An op that takes long compared to the memory of its result.
pub trait Saveable: CustomOp3 {
    /// Returns the state saved for the backward pass, after running.
    fn left(&self) -> SavedState;

    /// Restores the state saved by an earlier run.
    fn resume(&self, left: SavedState);
}

impl SavedOutputs {
    /// True if nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the bytes held.
    pub fn bytes(&self) -> usize {
        let of = |shelved: &SavedOutput| of_tensor(&shelved.output) + shelved.left.bytes();
        self.0.iter().map(of).sum()
    }

    pub(super) fn put(&mut self, shelved: SavedOutput) {
        self.0.push_back(shelved);
    }

    pub(super) fn take(&mut self) -> Option<SavedOutput> {
        self.0.pop_front()
    }
}

impl SavedState {
    fn bytes(&self) -> usize {
        match self {
            Self::Host(numbers) => size_of_val(&numbers[..]),
            Self::HostNarrow(numbers) => size_of_val(&numbers[..]),
            Self::Device(tensor) => of_tensor(tensor),
        }
    }
}

fn of_tensor(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}
