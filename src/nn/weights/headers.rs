//! Headers of a checkpoint, names and shapes alone: checks that a model can be built, before that takes minutes and
//! memory.
//!
//! The same code builds the model in both cases, so both find the same errors. Each tensor is one number, repeated by
//! strides of 0, whatever its shape.

use std::sync::{Mutex, MutexGuard};

use candle_core::{DType, Device, Result, Shape, Tensor};

use super::{Checkpoint, SHOWN};

/// Settings for reading a checkpoint's weights.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Number format that tensors are read in.
    pub dtype: DType,
    /// Device that tensors are read to.
    pub device: Device,
    /// Source of the numbers: the files, or random ones.
    pub content: Content,
}

/// Extent to which a checkpoint is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Everything.
    Numbers,
    /// Names and shapes alone: the resulting model cannot run, but shows whether it can be built.
    Headers,
}

impl Reading {
    /// Reads everything.
    pub fn numbers(dtype: DType, device: &Device) -> Self {
        Self {
            dtype,
            device: device.clone(),
            content: Content::Numbers,
        }
    }

    /// Reads names and shapes alone.
    pub fn headers(dtype: DType, device: &Device) -> Self {
        Self {
            content: Content::Headers,
            ..Self::numbers(dtype, device)
        }
    }
}

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
        if self.checkpoint.find(name, shape).is_none() {
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
