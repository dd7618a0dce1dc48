//! Gradients during the backward pass: added where several meet.

use std::collections::{BTreeMap, HashMap};

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Storage, Tensor, TensorId, bail};

use crate::ops::profile::{Level, span};
use crate::ops::sums;
use crate::ops::vjp::{Cotangent, vjp};

/// Destination of an input's gradient.
pub enum GradientKey {
    /// A variable, or another op's output; `dims` are its own, whatever shape the input has.
    Leaf { id: TensorId, dims: Vec<usize> },
    /// A part of such a tensor.
    Part { id: TensorId, dims: Vec<usize>, cut: Cut },
    /// The end of a segment of candle's own operations.
    Stretch(Tensor),
}

/// Gradients by their tensors.
#[derive(Default)]
pub struct Gradients(HashMap<TensorId, Sum>);

/// A gradient accumulated so far.
enum Sum {
    Whole {
        gradient: Tensor,
        /// True if the sum was allocated here, and may be added to in place.
        own: bool,
    },
    Parts(Parts),
}

/// Place of a part in a tensor, which it was cut from in this shape: from an index of an axis on.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    shape: Vec<usize>,
    dim: usize,
    start: usize,
}

/// Gradients of parts of a tensor that do not meet, by where they begin on an axis of its shape. What lies between them is 0.
struct Parts {
    /// The tensor's own.
    dims: Vec<usize>,
    shape: Vec<usize>,
    dim: usize,
    parts: BTreeMap<usize, Tensor>,
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
            (Some(leaf), None) => Some(match Cut::of(tensor, leaf) {
                Some(cut) => Self::Part {
                    id: leaf.id(),
                    dims: leaf.dims().to_vec(),
                    cut,
                },
                None => Self::Stretch(tensor.clone()),
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

impl Cut {
    /// Returns where a part lies in a tensor whose numbers it shares; None if it is more than one cut along an axis.
    fn of(part: &Tensor, whole: &Tensor) -> Option<Self> {
        let ((storage, layout), (all, all_layout)) = (part.storage_and_layout(), whole.storage_and_layout());
        let shared = std::ptr::eq(&raw const *storage, &raw const *all) && all_layout.is_contiguous();
        let (dims, stride, count) = (layout.dims(), layout.stride(), all_layout.shape().elem_count());
        if !shared || layout.shape().elem_count() == 0 || stride.last() != Some(&1) {
            return None;
        }
        // The shape of which these are the strides.
        let before = [&count].into_iter().chain(stride);
        let divides = before
            .clone()
            .zip(stride)
            .all(|(whole, part)| whole.is_multiple_of(*part));
        let shape: Vec<usize> = match divides {
            true => before.zip(stride).map(|(whole, part)| whole / part).collect(),
            false => return None,
        };
        let mut differ = (0..dims.len()).filter(|dim| dims[*dim] != shape[*dim]);
        let (Some(dim), None) = (differ.next(), differ.next()) else {
            return None;
        };
        let offset = layout.start_offset() - all_layout.start_offset();
        let start = offset / stride[dim];
        let fits = offset.is_multiple_of(stride[dim]) && start + dims[dim] <= shape[dim];
        fits.then_some(Self { shape, dim, start })
    }
}

impl Gradients {
    /// Removes and returns the gradient of a variable, if it has one.
    ///
    /// # Errors
    /// Fails if parts of it cannot be put together.
    pub fn remove(&mut self, variable: &Tensor) -> Result<Option<Tensor>> {
        self.remove_id(variable.id())
    }

    pub(super) fn remove_id(&mut self, id: TensorId) -> Result<Option<Tensor>> {
        self.0.remove(&id).map(Sum::whole).transpose()
    }

    /// Adds the gradient of an op's input to its destination.
    pub(super) fn hand_on(&mut self, source: Option<GradientKey>, gradient: Tensor) -> Result<()> {
        match source {
            None => Ok(()),
            Some(GradientKey::Leaf { id, dims }) => self.add(id, gradient.reshape(dims)?),
            Some(GradientKey::Part { id, dims, cut }) => {
                let sum = match self.0.remove(&id) {
                    None => Sum::Parts(Parts::new(dims, cut, gradient)),
                    Some(sum) => sum.with_part(dims, cut, gradient)?,
                };
                self.0.insert(id, sum);
                Ok(())
            }
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
            None => Sum::Whole { gradient, own: false },
            Some(sum) => sum.plus(&gradient)?,
        };
        self.0.insert(id, sum);
        Ok(())
    }
}

impl Sum {
    /// Returns all of it.
    fn whole(self) -> Result<Tensor> {
        match self {
            Self::Whole { gradient, .. } => Ok(gradient),
            Self::Parts(parts) => parts.whole(),
        }
    }

    fn plus(self, other: &Tensor) -> Result<Self> {
        let (sum, own) = match self {
            Self::Whole { gradient, own } => (gradient, own),
            Self::Parts(parts) => (parts.whole()?, true),
        };
        let _span = span(Level::Op, other.device(), || "sum of gradients".into());
        let ours = matches!(sum.dtype(), DType::F32 | DType::BF16) && sum.dtype() == other.dtype();
        let numbers = sum.device().is_cpu() && ours;
        let gradient = match (numbers, own) {
            (false, _) => (&sum + other)?,
            (true, false) => added(&sum, other)?,
            (true, true) => {
                sum.inplace_op2(&other.contiguous()?, &Add)?;
                sum
            }
        };
        Ok(Self::Whole { gradient, own: true })
    }

    /// Adds the gradient of a part of a tensor of this shape.
    fn with_part(self, dims: Vec<usize>, cut: Cut, gradient: Tensor) -> Result<Self> {
        let mut parts = match self {
            Self::Parts(parts) if parts.shape == cut.shape && parts.dim == cut.dim => parts,
            sum => return sum.plus(&Parts::new(dims, cut, gradient).whole()?),
        };
        let sum = match parts.has(cut.start, &gradient) {
            true => parts
                .parts
                .remove(&cut.start)
                .map(|part| part + &gradient)
                .transpose()?,
            false if parts.is_free(cut.start, gradient.dim(cut.dim)?)? => None,
            false => return Self::Parts(parts).plus(&Parts::new(dims, cut, gradient).whole()?),
        };
        parts.parts.insert(cut.start, sum.unwrap_or(gradient));
        Ok(Self::Parts(parts))
    }
}

impl Parts {
    /// A part alone.
    fn new(dims: Vec<usize>, Cut { shape, dim, start }: Cut, part: Tensor) -> Self {
        let parts = BTreeMap::from([(start, part)]);
        Self {
            dims,
            shape,
            dim,
            parts,
        }
    }

    /// True if this very part is there.
    fn has(&self, start: usize, part: &Tensor) -> bool {
        self.parts.get(&start).is_some_and(|there| there.dims() == part.dims())
    }

    /// True if no part meets `count` indices from `start` on.
    fn is_free(&self, start: usize, count: usize) -> Result<bool> {
        for (first, part) in &self.parts {
            if *first < start + count && start < first + part.dim(self.dim)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns them as one tensor, with zeros between them.
    fn whole(self) -> Result<Tensor> {
        let Self {
            dims,
            shape,
            dim,
            parts,
        } = self;
        let (mut all, mut at) = (Vec::new(), 0);
        let one = parts.values().next().map(|part| (part.dtype(), part.device().clone()));
        let Some((dtype, device)) = one else {
            bail!("a gradient of no parts");
        };
        let gap = |count: usize| {
            let mut gap = shape.clone();
            gap[dim] = count;
            Tensor::zeros(gap, dtype, &device)
        };
        for (start, part) in parts {
            if start > at {
                all.push(gap(start - at)?);
            }
            at = start + part.dim(dim)?;
            all.push(part);
        }
        if at < shape[dim] {
            all.push(gap(shape[dim] - at)?);
        }
        Tensor::cat(&all, dim)?.reshape(dims)
    }
}

/// Returns a + b, both on the CPU, in f32 or bf16.
fn added(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let ((a_storage, a_layout), (b_storage, b_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    let (Storage::Cpu(a_storage), Storage::Cpu(b_storage)) = (&*a_storage, &*b_storage) else {
        bail!("gradients of one tensor are on two devices");
    };
    let sum = sums::added((a_storage, a_layout), (b_storage, b_layout))?;
    Ok(Tensor::from_storage(
        Storage::Cpu(sum),
        a.shape(),
        BackpropOp::none(),
        false,
    ))
}

/// Computes a += b, both on the CPU, in f32 or bf16.
struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, a: &mut CpuStorage, a_layout: &Layout, b: &CpuStorage, b_layout: &Layout) -> Result<()> {
        sums::add_to((a, a_layout), (b, b_layout))
    }
}
