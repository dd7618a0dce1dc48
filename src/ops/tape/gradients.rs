//! Gradients during the backward pass: added where several meet.

use std::collections::HashMap;

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, TensorId, bail};
use rayon::prelude::*;

use crate::ops::f32_view::{CHUNK, numbers_of};
use crate::ops::profile::{Level, span};
use crate::ops::vjp::{Cotangent, vjp};

/// Destination of an input's gradient.
pub enum GradientKey {
    /// A variable, or another op's output; `dims` are its own, whatever shape the input has.
    Leaf { id: TensorId, dims: Vec<usize> },
    /// The end of a segment of candle's own operations.
    Stretch(Tensor),
}

/// Gradients by their tensors.
#[derive(Default)]
pub struct Gradients(HashMap<TensorId, Sum>);

/// A gradient accumulated so far.
struct Sum {
    gradient: Tensor,
    /// True if the sum was allocated here, and may be added to in place.
    own: bool,
}

impl GradientKey {
    /// Returns None if nothing before the tensor is trained.
    pub fn of(tensor: &Tensor) -> Option<Self> {
        if !tensor.track_op() {
            return None;
        }
        let nodes = tensor.sorted_nodes();
        let mut leaves = nodes.iter().filter(|node| node.is_variable());
        match (leaves.next(), leaves.next()) {
            (Some(leaf), None) if same_numbers(tensor, leaf) => Some(Self::Leaf {
                id: leaf.id(),
                dims: leaf.dims().to_vec(),
            }),
            _ => Some(Self::Stretch(tensor.clone())),
        }
    }
}

/// Checks that two tensors have the very same storage in the same order, in whatever shape.
fn same_numbers(a: &Tensor, b: &Tensor) -> bool {
    let ((a, a_layout), (b, b_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    let place = candle_core::Layout::contiguous_offsets;
    std::ptr::eq(&raw const *a, &raw const *b) && place(a_layout).is_some() && place(a_layout) == place(b_layout)
}

impl Gradients {
    /// Removes and returns the gradient of a variable, if it has one.
    pub fn remove(&mut self, variable: &Tensor) -> Option<Tensor> {
        self.remove_id(variable.id())
    }

    pub(super) fn remove_id(&mut self, id: TensorId) -> Option<Tensor> {
        self.0.remove(&id).map(|sum| sum.gradient)
    }

    /// Adds the gradient of an op's input to its destination.
    pub(super) fn hand_on(&mut self, source: Option<GradientKey>, gradient: Tensor) -> Result<()> {
        match source {
            None => Ok(()),
            Some(GradientKey::Leaf { id, dims }) => self.add(id, gradient.reshape(dims)?),
            Some(GradientKey::Stretch(output)) => self.through(output, gradient),
        }
    }

    /// Passes a gradient through candle's own operations.
    fn through(&mut self, output: Tensor, gradient: Tensor) -> Result<()> {
        let _span = span(Level::Op, output.device(), || "candle's operations backward".into());
        let leaves = output.sorted_nodes().into_iter().filter(|node| node.is_variable());
        let leaves: Vec<Tensor> = leaves.cloned().collect();
        if let Some(mut store) = vjp(&[Cotangent { output, gradient }])? {
            for leaf in leaves {
                if let Some(gradient) = store.remove(&leaf) {
                    self.add(leaf.id(), gradient)?;
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, id: TensorId, gradient: Tensor) -> Result<()> {
        let sum = match self.0.remove(&id) {
            None => Sum { gradient, own: false },
            Some(sum) => sum.plus(&gradient)?,
        };
        self.0.insert(id, sum);
        Ok(())
    }
}

impl Sum {
    fn plus(self, other: &Tensor) -> Result<Self> {
        let _span = span(Level::Op, other.device(), || "sum of gradients".into());
        let numbers = self.gradient.device().is_cpu() && self.gradient.dtype() == DType::F32;
        let gradient = match (numbers, self.own) {
            (false, _) => (&self.gradient + other)?,
            (true, false) => added(&self.gradient, other)?,
            (true, true) => {
                self.gradient.inplace_op2(&other.contiguous()?, &Add)?;
                self.gradient
            }
        };
        Ok(Self { gradient, own: true })
    }
}

/// Returns a + b, both f32 on the CPU.
fn added(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let sum = numbers_of([&a.contiguous()?, &b.contiguous()?], |[a, b]| {
        let mut sum = vec![0.0; a.len()];
        let chunks = sum
            .par_chunks_mut(CHUNK)
            .zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)));
        chunks.for_each(|(sum, (a, b))| {
            for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
                *sum = a + b;
            }
        });
        sum
    })?;
    Tensor::from_vec(sum, a.dims(), a.device())
}

/// Computes a += b, both f32 on the CPU.
struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, a_layout: &Layout, b: &CpuStorage, b_layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(a), CpuStorage::F32(b)) = (a, b) else {
            bail!("gradients are added in f32");
        };
        let (Some((start, end)), Some((first, last))) = (a_layout.contiguous_offsets(), b_layout.contiguous_offsets())
        else {
            bail!("gradients must be contiguous");
        };
        let chunks = a[start..end]
            .par_chunks_mut(CHUNK)
            .zip(b[first..last].par_chunks(CHUNK));
        chunks.for_each(|(a, b)| {
            for (a, b) in a.iter_mut().zip(b) {
                *a += b;
            }
        });
        Ok(())
    }
}
