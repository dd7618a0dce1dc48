//! Functions that treat each row by itself, run in blocks of rows: what lies between input and output exists for one block
//! at a time, and is computed again in the backward pass.
//!
//! The bits are those of the whole ([`blocks_of_rows`]). While a segment is recorded for its gradients, an output that
//! is not read is not computed at all: then the second run costs less than where everything in between is kept.
//!
//! On the CPU. Elsewhere the function runs once, on all rows.

use std::ops::Range;

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Result, Storage, Tensor, Var, bail};

use super::apply::leaf;
use super::gradients::GradientKey;
use super::{Line, MODE, Mode, Output, Purpose, SavedOutputs, purpose, record_with, within};
use crate::ops::f32_view::zeros;
use crate::ops::gemm::blocks_of_rows;
use crate::ops::vjp::Cotangent;

/// A function that treats each row by itself.
pub trait RowWise: Clone + 'static {
    /// Returns the numbers in a row of the output.
    ///
    /// # Errors
    /// Fails for weights of a wrong shape.
    fn width(&self) -> Result<usize>;

    /// Returns the variables that get gradients.
    fn variables(&self) -> Vec<Tensor>;

    /// Applies it to x (..., in) -> (..., out), whose first row is row `first` of all.
    ///
    /// # Errors
    /// Fails on mismatched shapes or types.
    fn run(&self, x: &Tensor, first: usize, output: Output) -> Result<Tensor>;
}

/// Applies the function to x (..., in) -> (..., out).
///
/// # Errors
/// Those of the function.
pub fn by_rows<F: RowWise>(x: &Tensor, function: &F, output: Output) -> Result<Tensor> {
    let Some((width, others)) = x.dims().split_last() else {
        bail!("rows of a scalar");
    };
    let rows: usize = others.iter().product();
    let variables = function.variables();
    let learns = x.track_op() || !variables.is_empty();
    let several = blocks_of_rows(rows).len() > 1;
    let candle = learns && MODE.with_borrow(|mode| matches!(mode, Mode::Candle));
    let kept = learns && purpose() == Some(Purpose::Speed);
    let again = learns && output == Output::Unread && purpose() == Some(Purpose::Gradients);
    let suits = x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::BF16);
    if !suits || candle || kept || !(several || again) {
        return function.run(x, 0, Output::Read);
    }
    let rows = Rows {
        x: x.contiguous()?.reshape((rows, *width))?,
        function: function.clone(),
        variables,
    };
    let mut shape = x.dims().to_vec();
    if let Some(width) = shape.last_mut() {
        *width = function.width()?;
    }
    let numbers = match again {
        true => zeros(shape.iter().product(), x.dtype())?,
        false => rows.forward()?,
    };
    if !learns {
        let storage = Storage::Cpu(numbers);
        return Ok(Tensor::from_storage(storage, shape, BackpropOp::none(), false));
    }
    let output = leaf(Storage::Cpu(numbers), shape.into());
    MODE.with_borrow_mut(|mode| {
        if let Mode::Tape(recording) = mode {
            recording.lines.push(rows.line(x, &output));
        }
    });
    Ok(output)
}

/// A function on rows (N, in).
struct Rows<F> {
    x: Tensor,
    function: F,
    variables: Vec<Tensor>,
}

impl<F: RowWise> Rows<F> {
    fn count(&self) -> usize {
        self.x.dims()[0]
    }

    /// Returns some rows, without their history.
    fn part(&self, rows: &Range<usize>) -> Result<Tensor> {
        self.x.detach().narrow(0, rows.start, rows.len())
    }

    /// Returns the output (N, out).
    fn forward(&self) -> Result<CpuStorage> {
        let width = self.function.width()?;
        let mut y = zeros(self.count() * width, self.x.dtype())?;
        for rows in blocks_of_rows(self.count()) {
            let part = self.part(&rows)?;
            let run = || self.function.run(&part, rows.start, Output::Read);
            put(&mut y, rows.start * width, &within(Mode::Nothing, run)?.0)?;
        }
        Ok(y)
    }

    /// Returns the gradients of x and of the variables, given that of the output.
    fn back(&self, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let gradient = gradient.reshape((self.count(), self.function.width()?))?;
        let (learns, width) = (self.x.track_op(), self.x.dims()[1]);
        let mut dx = zeros(if learns { self.x.elem_count() } else { 0 }, self.x.dtype())?;
        let mut sums = vec![None; self.variables.len()];
        for rows in blocks_of_rows(self.count()) {
            let mut part = self.part(&rows)?;
            if learns {
                part = Var::from_tensor(&part)?.into_inner();
            }
            let run = || self.function.run(&part, rows.start, Output::Unread);
            let (output, tape) = record_with(SavedOutputs::default(), Purpose::Gradients, run)?;
            let gradient = gradient.narrow(0, rows.start, rows.len())?;
            let mut found = tape.backward(&[Cotangent { output, gradient }])?;
            if let Some(gradient) = found.remove(&part)?.filter(|_| learns) {
                put(&mut dx, rows.start * width, &gradient)?;
            }
            for (variable, sum) in self.variables.iter().zip(&mut sums) {
                *sum = match (sum.take(), found.remove(variable)?) {
                    (Some(sum), Some(gradient)) => Some((sum + gradient)?),
                    (sum, gradient) => sum.or(gradient),
                };
            }
        }
        let dx = learns.then(|| Tensor::from_storage(Storage::Cpu(dx), self.x.shape(), BackpropOp::none(), false));
        Ok([dx].into_iter().chain(sums).collect())
    }

    /// Returns the tape's entry.
    fn line(self, x: &Tensor, output: &Tensor) -> Line {
        let held = {
            let (storage, _) = self.x.storage_and_layout();
            (
                &raw const *storage,
                self.x.elem_count() * self.x.dtype().size_in_bytes(),
            )
        };
        let shape = x.shape().clone();
        Line {
            output: output.id(),
            sources: [x].into_iter().chain(&self.variables).map(GradientKey::of).collect(),
            holds: vec![held],
            back: Box::new(move |gradient| {
                let mut gradients = self.back(gradient)?;
                if let Some(dx) = gradients.first_mut() {
                    *dx = dx.take().map(|dx| dx.reshape(&shape)).transpose()?;
                }
                Ok(gradients)
            }),
        }
    }
}

/// Copies a tensor's numbers to `at`.
fn put(to: &mut CpuStorage, at: usize, from: &Tensor) -> Result<()> {
    let from = from.contiguous()?;
    let (storage, layout) = from.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("rows are put together on the CPU");
    };
    let place = at..at + end - start;
    match (to, storage) {
        (CpuStorage::F32(to), CpuStorage::F32(from)) => to[place].copy_from_slice(&from[start..end]),
        (CpuStorage::BF16(to), CpuStorage::BF16(from)) => to[place].copy_from_slice(&from[start..end]),
        _ => bail!("rows of one type became rows of another"),
    }
    Ok(())
}
