//! Headers of a checkpoint, names and shapes alone: checks that a model can be built, before that takes minutes and
//! memory.
//!
//! The same code builds the model in both cases, so both find the same errors. Each tensor is one number, repeated by
//! strides of 0, whatever its shape.

use std::sync::{Mutex, MutexGuard};

use candle_core::{DType, Device, Result, Shape, Tensor};

use super::super::checkpoint::Checkpoint;
use super::SHOWN;

/// A checkpoint without its numbers.
pub(super) struct Headers {
    pub(super) checkpoint: Checkpoint,
    /// True if the numbers would be read into main memory.
    pub(super) in_memory: bool,
    misfits: Mutex<HeaderMismatches>,
}

/// Requested tensors that are missing, or of another shape.
#[derive(Default)]
struct HeaderMismatches {
    count: usize,
    /// Messages of the first ones.
    shown: Vec<String>,
}

impl Headers {
    /// Headers of a checkpoint; `in_memory` is true if its numbers would be read into main memory.
    pub(super) fn of(checkpoint: Checkpoint, in_memory: bool) -> Self {
        Self {
            checkpoint,
            in_memory,
            misfits: Mutex::default(),
        }
    }

    /// Returns a placeholder of this shape: one number, repeated. Records a missing tensor.
    pub(super) fn stand_in(&self, name: &str, shape: &Shape, dtype: DType) -> Result<Tensor> {
        if !self.checkpoint.request(name, shape) {
            let mut misfits = self.noted();
            misfits.count += 1;
            if misfits.count <= SHOWN {
                misfits.shown.push(self.checkpoint.complaint(name, shape));
            }
        }
        Tensor::ones((), dtype, &Device::Cpu)?.broadcast_as(shape)
    }

    /// Lists the requested tensors that are missing or mismatched, one per line.
    pub(super) fn misfits(&self) -> Option<String> {
        let misfits = self.noted();
        let more = match misfits.count.saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!("\n  and {more} more"),
        };
        (misfits.count > 0).then(|| misfits.shown.join("\n") + &more)
    }

    fn noted(&self) -> MutexGuard<'_, HeaderMismatches> {
        self.misfits.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
