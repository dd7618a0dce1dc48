//! Results that are kept between the two times that a stretch is run, because they take long and little memory.

use std::collections::VecDeque;
use std::sync::Arc;

use candle_core::{CustomOp3, Tensor};

/// Results of costly ops in the order in which they ran.
#[derive(Default)]
pub struct Shelf(VecDeque<Shelved>);

/// What a costly op gave, and what else it left for its way back.
pub struct Shelved {
    pub output: Tensor,
    pub left: Left,
}

/// What an op leaves for its way back besides its output: numbers, where the op ran.
#[derive(Debug, Clone)]
pub enum Left {
    Host(Arc<Vec<f32>>),
    Device(Tensor),
}

/// An op whose time is long for the memory that its result takes.
pub trait Costly: CustomOp3 {
    /// What it left for its way back, having run.
    fn left(&self) -> Left;

    /// As if it had run and left this.
    fn resume(&self, left: Left);
}

impl Shelf {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How much memory it holds.
    pub fn bytes(&self) -> usize {
        let of = |shelved: &Shelved| of_tensor(&shelved.output) + shelved.left.bytes();
        self.0.iter().map(of).sum()
    }

    pub(super) fn put(&mut self, shelved: Shelved) {
        self.0.push_back(shelved);
    }

    pub(super) fn take(&mut self) -> Option<Shelved> {
        self.0.pop_front()
    }
}

impl Left {
    fn bytes(&self) -> usize {
        match self {
            Self::Host(numbers) => size_of_val(&numbers[..]),
            Self::Device(tensor) => of_tensor(tensor),
        }
    }
}

fn of_tensor(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}
