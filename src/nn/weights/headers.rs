//! A checkpoint of which names and shapes alone are read: whether a model can be built of it, before that takes minutes and
//! memory.
//!
//! What loads a model builds it of these, too, so that both agree about what is wrong. Each tensor is one number that is
//! seen again and again (strides of 0), whatever its shape.

use std::sync::{Mutex, MutexGuard};

use candle_core::{DType, Device, Result, Shape, Tensor};

use super::{Checkpoint, SHOWN};

/// How the weights of a checkpoint are read.
#[derive(Debug, Clone)]
pub struct Reading {
    pub dtype: DType,
    pub device: Device,
    pub content: Content,
}

/// The extent to which a checkpoint is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// All of it.
    Numbers,
    /// Names and shapes alone: what is built of them cannot run, and says whether it could be built.
    Headers,
}

impl Reading {
    /// Reads all that is there.
    pub fn numbers(dtype: DType, device: &Device) -> Self {
        Self {
            dtype,
            device: device.clone(),
            content: Content::Numbers,
        }
    }

    /// Reads names and shapes alone of what would be read so.
    pub fn headers(dtype: DType, device: &Device) -> Self {
        Self {
            content: Content::Headers,
            ..Self::numbers(dtype, device)
        }
    }
}

/// A checkpoint whose numbers are left where they are.
pub(super) struct Headers {
    pub(super) checkpoint: Checkpoint,
    /// Whether they would come into main memory.
    pub(super) in_memory: bool,
    misfits: Mutex<Misfits>,
}

/// Tensors that layers asked for and that are not there, or are of another shape.
#[derive(Default)]
struct Misfits {
    count: usize,
    /// The first of them, in words.
    shown: Vec<String>,
}

impl Headers {
    /// `in_memory`: whether the numbers would come into main memory.
    pub(super) fn of(checkpoint: Checkpoint, in_memory: bool) -> Self {
        Self {
            checkpoint,
            in_memory,
            misfits: Mutex::default(),
        }
    }

    /// A tensor of this shape without its numbers: one number, seen again and again. What is not there is noted.
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

    /// Lists the tensors that layers asked for in vain, a line each.
    pub(super) fn misfits(&self) -> Option<String> {
        let misfits = self.noted();
        let more = match misfits.count.saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!("\n  and {more} more"),
        };
        (misfits.count > 0).then(|| misfits.shown.join("\n") + &more)
    }

    fn noted(&self) -> MutexGuard<'_, Misfits> {
        self.misfits.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
