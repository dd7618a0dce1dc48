//! Matrices without numbers: they have a shape and a size, and products with them are 0. A model of such matrices runs in
//! no time and takes the memory of its activations alone, for a plan of memory.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use crate::ops::stored::{Outlined, StoredMatrix};

/// A matrix (out, in) without numbers.
#[derive(Debug)]
pub struct Outline {
    /// (out, in)
    pub shape: (usize, usize),
    /// Bytes that it stands for.
    pub bytes: usize,
    /// Form of the numbers that it stands for.
    pub form: Outlined,
}

impl StoredMatrix for Outline {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn rows(&self, range: Range<usize>, dtype: DType) -> Result<Tensor> {
        Tensor::zeros((range.len(), self.shape.1), dtype, &Device::Cpu)
    }

    fn outline(&self) -> Option<Outlined> {
        Some(self.form)
    }
}
