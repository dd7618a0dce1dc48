//! Runs an op, and records it if there is a tape.

use candle_core::op::BackpropOp;
use candle_core::{CustomOp1, CustomOp2, CustomOp3, DType, Result, Shape, Storage, Tensor, Var, bail};

use super::gradients::GradientKey;
use super::saved::{Saveable, SavedOutput};
use super::{Line, MODE, Mode, Purpose, purpose};
use crate::ops::f32_view;
use crate::ops::profile::{Level, Span, span};
use crate::process::allocations::{self, Event};

/// Inputs and output that an op's backward pass reads. Of the others it gets shape and type, but no numbers.
#[derive(Debug, Clone, Copy)]
pub struct Reads<const N: usize> {
    /// True for each input whose numbers are read.
    pub inputs: [bool; N],
    /// True if the output's numbers are read.
    pub output: bool,
}

/// Use of an op's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Its numbers are read.
    Read,
    /// Only its shape is used, and its gradient.
    Unread,
}

impl Output {
    /// Returns the use of the last output of a block: unread while the block is recorded for its gradients alone.
    pub fn of_block() -> Self {
        match purpose() {
            Some(Purpose::Gradients) => Self::Unread,
            _ => Self::Read,
        }
    }

    /// Returns the shape of an output that need not be computed.
    pub fn of(self, shape: Shape) -> Option<Shape> {
        (self == Self::Unread).then_some(shape)
    }
}

/// Runs an op of one input.
pub fn apply1<C>(x: &Tensor, op: C, reads: Reads<1>) -> Result<Tensor>
where
    C: CustomOp1 + Send + Sync + 'static,
{
    apply1_for(x, op, reads, None)
}

/// Same as [`apply1`]; an output that is not read, of this shape, is zeros on the CPU if a tape is recorded.
pub fn apply1_for<C>(x: &Tensor, op: C, reads: Reads<1>, unread: Option<Shape>) -> Result<Tensor>
where
    C: CustomOp1 + Send + Sync + 'static,
{
    let _span = there(op.name(), x);
    if !x.track_op() {
        return x.apply_op1_no_bwd(&op);
    }
    if candle_records() {
        return x.apply_op1(op);
    }
    let output = match unread.filter(|_| may_skip(x)) {
        Some(shape) => zeros(shape, x.dtype())?,
        None => run1(x, &op)?,
    };
    note([x], output, reads, move |[x], output, gradient| {
        let _span = back(op.name(), gradient);
        Ok(vec![op.bwd(x, output, gradient)?])
    })
}

/// Runs an op of two inputs.
pub fn apply2<C>([x, y]: [&Tensor; 2], op: C, reads: Reads<2>) -> Result<Tensor>
where
    C: CustomOp2 + Send + Sync + 'static,
{
    let _span = there(op.name(), x);
    if ![x, y].iter().any(|input| input.track_op()) {
        return x.apply_op2_no_bwd(y, &op);
    }
    if candle_records() {
        return x.apply_op2(y, op);
    }
    let output = run2([x, y], &op)?;
    note([x, y], output, reads, move |[x, y], output, gradient| {
        let _span = back(op.name(), gradient);
        let (x, y) = op.bwd(x, y, output, gradient)?;
        Ok(vec![x, y])
    })
}

/// Runs an op of three inputs.
pub fn apply3<C>(inputs: [&Tensor; 3], op: C, reads: Reads<3>) -> Result<Tensor>
where
    C: CustomOp3 + Send + Sync + 'static,
{
    apply3_for(inputs, op, reads, None)
}

/// Same as [`apply3`]; an output that is not read, of this shape, is zeros on the CPU if a tape is recorded.
pub fn apply3_for<C>([x, y, z]: [&Tensor; 3], op: C, reads: Reads<3>, unread: Option<Shape>) -> Result<Tensor>
where
    C: CustomOp3 + Send + Sync + 'static,
{
    let _span = there(op.name(), x);
    if ![x, y, z].iter().any(|input| input.track_op()) {
        return x.apply_op3_no_bwd(y, z, &op);
    }
    if candle_records() {
        return x.apply_op3(y, z, op);
    }
    let output = match unread.filter(|_| may_skip(x)) {
        Some(shape) => zeros(shape, x.dtype())?,
        None => run3([x, y, z], &op)?,
    };
    note3([x, y, z], output, op, reads)
}

/// Runs an op of three inputs whose result is saved, or takes the saved result.
pub fn apply3_costly<C>(inputs: [&Tensor; 3], op: C, reads: Reads<3>) -> Result<Tensor>
where
    C: Saveable + Send + Sync + 'static,
{
    if candle_records() || !inputs.iter().any(|input| input.track_op()) {
        return apply3(inputs, op, reads);
    }
    let output = match take_down() {
        Some(SavedOutput { output, left }) => {
            op.resume(left);
            output
        }
        None => {
            let _span = there(op.name(), inputs[0]);
            run3(inputs, &op)?
        }
    };
    MODE.with_borrow_mut(|mode| {
        if let Mode::Save(saved) = mode {
            let (output, left) = (output.clone(), op.left());
            saved.put(SavedOutput { output, left });
        }
    });
    note3(inputs, output, op, reads)
}

/// Begins the profile interval of an op's forward pass.
fn there(op: &str, x: &Tensor) -> OpSpan {
    OpSpan::begin(span(Level::Op, x.device(), || op.to_string()))
}

/// Begins the profile interval of an op's backward pass.
fn back(op: &str, gradient: &Tensor) -> OpSpan {
    OpSpan::begin(span(Level::Op, gradient.device(), || format!("{op} backward")))
}

/// An op that runs, for the profile and for the record of allocations.
struct OpSpan {
    _span: Span,
}

impl OpSpan {
    fn begin(span: Span) -> Self {
        allocations::mention(Event::OpBegins);
        Self { _span: span }
    }
}

impl Drop for OpSpan {
    fn drop(&mut self) {
        allocations::mention(Event::OpEnds);
    }
}

/// True if an output that is not read need not be computed.
fn may_skip(x: &Tensor) -> bool {
    x.device().is_cpu() && purpose().is_some()
}

/// Returns a new leaf of zeros on the CPU.
fn zeros(shape: Shape, dtype: DType) -> Result<Tensor> {
    Ok(leaf(Storage::Cpu(f32_view::zeros(shape.elem_count(), dtype)?), shape))
}

fn candle_records() -> bool {
    MODE.with_borrow(|mode| matches!(mode, Mode::Candle))
}

/// Takes the next saved result when a segment is run again.
fn take_down() -> Option<SavedOutput> {
    MODE.with_borrow_mut(|mode| match mode {
        Mode::Tape(recording) => recording.saved.take(),
        Mode::Candle | Mode::Nothing | Mode::Save(_) => None,
    })
}

fn run1(x: &Tensor, op: &impl CustomOp1) -> Result<Tensor> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(x) => op.cpu_fwd(x, layout).map(|(y, shape)| leaf(Storage::Cpu(y), shape)),
        Storage::Cuda(x) => op.cuda_fwd(x, layout).map(|(y, shape)| leaf(Storage::Cuda(y), shape)),
        Storage::Metal(_) => bail!("{} has no kernel for Metal", op.name()),
    }
}

fn run2(inputs: [&Tensor; 2], op: &impl CustomOp2) -> Result<Tensor> {
    let [(x, x_layout), (y, y_layout)] = inputs.map(Tensor::storage_and_layout);
    match (&*x, &*y) {
        (Storage::Cpu(x), Storage::Cpu(y)) => {
            let (output, shape) = op.cpu_fwd(x, x_layout, y, y_layout)?;
            Ok(leaf(Storage::Cpu(output), shape))
        }
        (Storage::Cuda(x), Storage::Cuda(y)) => {
            let (output, shape) = op.cuda_fwd(x, x_layout, y, y_layout)?;
            Ok(leaf(Storage::Cuda(output), shape))
        }
        _ => elsewhere(op.name()),
    }
}

fn run3(inputs: [&Tensor; 3], op: &impl CustomOp3) -> Result<Tensor> {
    let [(x, x_layout), (y, y_layout), (z, z_layout)] = inputs.map(Tensor::storage_and_layout);
    match (&*x, &*y, &*z) {
        (Storage::Cpu(x), Storage::Cpu(y), Storage::Cpu(z)) => {
            let (output, shape) = op.cpu_fwd(x, x_layout, y, y_layout, z, z_layout)?;
            Ok(leaf(Storage::Cpu(output), shape))
        }
        (Storage::Cuda(x), Storage::Cuda(y), Storage::Cuda(z)) => {
            let (output, shape) = op.cuda_fwd(x, x_layout, y, y_layout, z, z_layout)?;
            Ok(leaf(Storage::Cuda(output), shape))
        }
        _ => elsewhere(op.name()),
    }
}

fn elsewhere<T>(op: &str) -> Result<T> {
    bail!("{op} was given tensors on different devices, or on one that it has no kernel for")
}

/// Returns an op's result as a new leaf of candle's graph.
pub(super) fn leaf(storage: Storage, shape: Shape) -> Tensor {
    Tensor::from_storage(storage, shape, BackpropOp::none(), true)
}

fn note3<C>(inputs: [&Tensor; 3], output: Tensor, op: C, reads: Reads<3>) -> Result<Tensor>
where
    C: CustomOp3 + Send + Sync + 'static,
{
    note(inputs, output, reads, move |[x, y, z], output, gradient| {
        let _span = back(op.name(), gradient);
        let (x, y, z) = op.bwd(x, y, z, output, gradient)?;
        Ok(vec![x, y, z])
    })
}

/// Records an entry, if there is a tape. `back` gets the inputs, the output and its gradient.
fn note<const N: usize>(
    inputs: [&Tensor; N],
    output: Tensor,
    reads: Reads<N>,
    back: impl FnOnce([&Tensor; N], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + 'static,
) -> Result<Tensor> {
    if !MODE.with_borrow(|mode| matches!(mode, Mode::Tape(..))) {
        return Ok(output);
    }
    let sources = inputs.map(GradientKey::of).into();
    let mut seen = inputs.map(Tensor::clone);
    for (input, reads) in seen.iter_mut().zip(reads.inputs) {
        *input = seen_of(input, reads)?;
    }
    let seen_output = seen_of(&output, reads.output)?;
    let line = Line {
        output: output.id(),
        sources,
        holds: seen.iter().chain([&seen_output]).map(holds).collect(),
        back: Box::new(move |gradient| back(seen.each_ref(), &seen_output, gradient)),
    };
    MODE.with_borrow_mut(|mode| {
        if let Mode::Tape(recording) = mode {
            recording.lines.push(line);
        }
    });
    Ok(output)
}

/// Returns what the backward pass sees of a tensor: all, or an outline that holds no memory.
fn seen_of(tensor: &Tensor, reads: bool) -> Result<Tensor> {
    if reads {
        return Ok(tensor.clone());
    }
    if tensor.rank() == 0 {
        return outline(tensor)?.reshape(()); // no view of a single number has fewer axes
    }
    let known = MODE.with_borrow(|mode| match mode {
        Mode::Tape(recording) => recording.outlines.iter().find(|one| suits(one, tensor)).cloned(),
        Mode::Candle | Mode::Nothing | Mode::Save(_) => None,
    });
    let one = match known {
        Some(one) => one,
        None => {
            let made = outline(tensor)?;
            MODE.with_borrow_mut(|mode| {
                if let Mode::Tape(recording) = mode {
                    recording.outlines.push(made.clone());
                }
            });
            made
        }
    };
    one.broadcast_as(tensor.shape())
}

/// True for a number that stands for those of a tensor.
fn suits(one: &Tensor, tensor: &Tensor) -> bool {
    let same = one.dtype() == tensor.dtype() && one.track_op() == tensor.track_op();
    same && one.device().same_device(tensor.device())
}

/// Returns a single number that is trained if the tensor is.
fn outline(tensor: &Tensor) -> Result<Tensor> {
    let one = Tensor::zeros(1, tensor.dtype(), tensor.device())?;
    match tensor.track_op() {
        true => Ok(Var::from_tensor(&one)?.into_inner()),
        false => Ok(one),
    }
}

/// Returns a tensor's address and bytes; an outline has none.
fn holds(tensor: &Tensor) -> (*const Storage, usize) {
    let (storage, layout) = tensor.storage_and_layout();
    let numbers = if layout.is_contiguous() { tensor.elem_count() } else { 0 };
    (&raw const *storage, numbers * tensor.dtype().size_in_bytes())
}
