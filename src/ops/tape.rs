//! What a stretch of the forward pass did, op by op, and the way back through it.
//!
//! candle's own backward pass fills every gradient with zeros to add to it, holds all it has passed until it is through,
//! and keeps all that an op was given. A tape hands gradients on as they are, adds only where two meet, lets go of each op
//! as soon as it is passed, and keeps only what the op's way back reads.
//!
//! While [`record`] runs, what an op of this module gives is a leaf of candle's graph, and a line on the tape leads on from
//! it. What is computed between two ops by candle itself is differentiated by candle ([`chain`]); a tensor that only shows
//! another's numbers in another shape costs nothing. So models are written as if there were no tape.
//!
//! The tape of a thread is found by its ops without being handed through every layer; it lives as long as `record`.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp3, DType, InplaceOp2, Layout, Result, Shape, Storage, Tensor, TensorId, bail,
};
use rayon::prelude::*;

use super::chain::{Given, chain};
use super::slices::{CHUNK, numbers_of};

thread_local! {
    static MODE: RefCell<Mode> = const { RefCell::new(Mode::Candle) };
}

/// What ops leave behind for the way back.
#[derive(Default)]
enum Mode {
    /// What candle's own graph wants.
    #[default]
    Candle,
    /// Nothing: whether something learns still shows.
    Nothing,
    /// Lines of a tape.
    Tape(Vec<Line>),
}

/// One op that was run.
struct Line {
    output: TensorId,
    /// Where the gradients of its inputs go; none where nobody wants one.
    sources: Vec<Option<Source>>,
    /// From the gradient of the output to those of the inputs.
    back: Box<Back>,
}

type Back = dyn FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>>;

/// What an op's input is.
enum Source {
    /// A variable, or what another op gave; `dims` are its own, whatever shape the input has.
    Leaf { id: TensorId, dims: Vec<usize> },
    /// The end of a stretch of candle's own operations.
    Stretch(Tensor),
}

/// What an op's way back reads of what it was given and gave. Of the rest it sees shape and type, and no numbers.
#[derive(Debug, Clone, Copy)]
pub struct Reads<const N: usize> {
    pub inputs: [bool; N],
    pub output: bool,
}

/// The ops that ran while it was recorded.
pub struct Tape(Vec<Line>);

/// Gradients by the tensors that they belong to.
#[derive(Default)]
pub struct Gradients(HashMap<TensorId, Sum>);

/// A gradient so far.
struct Sum {
    gradient: Tensor,
    /// Whether it was added up here, and nobody else sees its numbers.
    own: bool,
}

/// Runs `compute` and notes its ops.
///
/// # Errors
/// Those of `compute`.
pub fn record<T>(compute: impl FnOnce() -> Result<T>) -> Result<(T, Tape)> {
    let (value, mode) = within(Mode::Tape(Vec::new()), compute)?;
    let lines = match mode {
        Mode::Tape(lines) => lines,
        Mode::Candle | Mode::Nothing => Vec::new(),
    };
    Ok((value, Tape(lines)))
}

/// Runs `compute` for its result alone: no way leads back through its ops, and nothing is kept for one. Where something
/// learns, the result is a variable.
///
/// # Errors
/// Those of `compute`.
pub fn forget<T>(compute: impl FnOnce() -> Result<T>) -> Result<T> {
    Ok(within(Mode::Nothing, compute)?.0)
}

/// Runs `compute` in a mode, and what the mode came to.
fn within<T>(mode: Mode, compute: impl FnOnce() -> Result<T>) -> Result<(T, Mode)> {
    /// Puts the mode around this back, also where `compute` panics.
    struct Around(Mode);
    impl Drop for Around {
        fn drop(&mut self) {
            MODE.set(std::mem::take(&mut self.0));
        }
    }
    let _around = Around(MODE.replace(mode));
    let value = compute()?;
    Ok((value, MODE.take()))
}

impl Tape {
    /// From the gradients of outputs to those of all variables that they were computed from.
    ///
    /// # Errors
    /// A gradient of another shape than its output; what an op's way back refuses.
    pub fn backward(self, given: &[Given]) -> Result<Gradients> {
        let mut due = Gradients::default();
        for Given { output, gradient } in given {
            if output.dims() != gradient.dims() {
                bail!("an output {:?} with a gradient {:?}", output.dims(), gradient.dims());
            }
            due.hand_on(Source::of(output), gradient.clone())?;
        }
        for line in self.0.into_iter().rev() {
            let Some(Sum { gradient, .. }) = due.0.remove(&line.output) else {
                continue;
            };
            let gradients = (line.back)(&gradient.contiguous()?)?;
            for (source, gradient) in line.sources.into_iter().zip(gradients) {
                if let Some(gradient) = gradient {
                    due.hand_on(source, gradient)?;
                }
            }
        }
        Ok(due)
    }
}

impl Gradients {
    /// The gradient of a variable, if anything given depends on it.
    pub fn remove(&mut self, variable: &Tensor) -> Option<Tensor> {
        self.0.remove(&variable.id()).map(|sum| sum.gradient)
    }

    fn hand_on(&mut self, source: Option<Source>, gradient: Tensor) -> Result<()> {
        match source {
            None => Ok(()),
            Some(Source::Leaf { id, dims }) => self.add(id, gradient.reshape(dims)?),
            Some(Source::Stretch(output)) => {
                let given = Given {
                    output: output.clone(),
                    gradient,
                };
                let Some(mut store) = chain(&[given])? else {
                    return Ok(());
                };
                let leaves = output.sorted_nodes().into_iter().filter(|node| node.is_variable());
                for leaf in leaves {
                    if let Some(gradient) = store.remove(leaf) {
                        self.add(leaf.id(), gradient)?;
                    }
                }
                Ok(())
            }
        }
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

impl Source {
    fn of(tensor: &Tensor) -> Option<Self> {
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

/// Whether two tensors are the very same numbers in the same order, in whatever shape.
fn same_numbers(a: &Tensor, b: &Tensor) -> bool {
    let ((a, a_layout), (b, b_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    let place = Layout::contiguous_offsets;
    std::ptr::eq(&raw const *a, &raw const *b) && place(a_layout).is_some() && place(a_layout) == place(b_layout)
}

/// Runs an op of one input, noted where there is a tape and something to learn.
pub fn apply1<C>(x: &Tensor, op: C, reads: Reads<1>) -> Result<Tensor>
where
    C: CustomOp1 + Send + Sync + 'static,
{
    if !x.track_op() {
        return x.apply_op1_no_bwd(&op);
    }
    if candle_records() {
        return x.apply_op1(op);
    }
    let given = {
        let (storage, layout) = x.storage_and_layout();
        op.cpu_fwd(on_cpu(&storage)?, layout)?
    };
    let output = leaf(given);
    if !recording() {
        return Ok(output);
    }
    let ([x], source, seen) = (seen([x], reads)?, Source::of(x), seen_of(&output, reads.output)?);
    note(&output, vec![source], move |gradient| {
        Ok(vec![op.bwd(&x, &seen, gradient)?])
    });
    Ok(output)
}

/// The same for three inputs.
pub fn apply3<C>([x, y, z]: [&Tensor; 3], op: C, reads: Reads<3>) -> Result<Tensor>
where
    C: CustomOp3 + Send + Sync + 'static,
{
    if ![x, y, z].iter().any(|input| input.track_op()) {
        return x.apply_op3_no_bwd(y, z, &op);
    }
    if candle_records() {
        return x.apply_op3(y, z, op);
    }
    let given = {
        let [(x, x_layout), (y, y_layout), (z, z_layout)] = [x, y, z].map(Tensor::storage_and_layout);
        let (x, y, z) = (on_cpu(&x)?, on_cpu(&y)?, on_cpu(&z)?);
        op.cpu_fwd(x, x_layout, y, y_layout, z, z_layout)?
    };
    let output = leaf(given);
    if !recording() {
        return Ok(output);
    }
    let sources = [x, y, z].map(Source::of).into();
    let ([x, y, z], seen) = (seen([x, y, z], reads)?, seen_of(&output, reads.output)?);
    note(&output, sources, move |gradient| {
        let (x, y, z) = op.bwd(&x, &y, &z, &seen, gradient)?;
        Ok(vec![x, y, z])
    });
    Ok(output)
}

fn candle_records() -> bool {
    MODE.with_borrow(|mode| matches!(mode, Mode::Candle))
}

fn recording() -> bool {
    MODE.with_borrow(|mode| matches!(mode, Mode::Tape(_)))
}

fn note(
    output: &Tensor,
    sources: Vec<Option<Source>>,
    back: impl FnOnce(&Tensor) -> Result<Vec<Option<Tensor>>> + 'static,
) {
    let line = Line {
        output: output.id(),
        sources,
        back: Box::new(back),
    };
    MODE.with_borrow_mut(|mode| {
        if let Mode::Tape(lines) = mode {
            lines.push(line);
        }
    });
}

fn on_cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => bail!("an op for the CPU was given a tensor on a device"),
    }
}

/// An op's result, at which candle's graph starts anew.
fn leaf((storage, shape): (CpuStorage, Shape)) -> Tensor {
    Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), true)
}

fn seen<const N: usize>(inputs: [&Tensor; N], reads: Reads<N>) -> Result<[Tensor; N]> {
    let mut seen = inputs.map(Tensor::clone);
    for (input, reads) in seen.iter_mut().zip(reads.inputs) {
        *input = seen_of(input, reads)?;
    }
    Ok(seen)
}

/// What the way back sees of a tensor: all, or an outline that holds no memory.
fn seen_of(tensor: &Tensor, reads: bool) -> Result<Tensor> {
    if reads {
        // Not its graph, which would hold what came before; whether it learns still shows.
        return Ok(tensor.clone());
    }
    let one = Tensor::zeros(vec![1; tensor.rank()], tensor.dtype(), tensor.device())?;
    let one = match tensor.track_op() {
        true => candle_core::Var::from_tensor(&one)?.into_inner(),
        false => one,
    };
    one.broadcast_as(tensor.shape())
}

/// a + b, both f32 on the CPU.
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

/// a += b, both f32 on the CPU.
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
            bail!("gradients are added without gaps");
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
