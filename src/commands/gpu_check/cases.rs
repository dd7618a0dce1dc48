//! Compares ops on a GPU with the CPU: outputs, and the gradients of all trained inputs.

mod attention;
mod blocks;
mod coders;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::Group;
use super::row::{Row, difference, most, poison};
use crate::ops::attention::way;
use crate::ops::tape::record;
use crate::ops::vjp::Cotangent;
use crate::rng::Rng;

pub use attention::{Tokens, repeated};

/// An op with the shapes of its inputs.
pub struct Case {
    pub name: String,
    inputs: Vec<Input>,
    run: Box<Run>,
}

/// Function from the inputs to the output.
type Run = dyn Fn(&[Tensor]) -> Result<Tensor>;

/// A tensor of standard normal numbers, times a factor.
#[derive(Clone)]
pub struct Input {
    name: &'static str,
    shape: Vec<usize>,
    /// True if its gradient is compared.
    learns: bool,
    /// True if it is always f32: tables and adapters.
    wide: bool,
    factor: f64,
}

pub fn input(name: &'static str, shape: &[usize]) -> Input {
    Input {
        name,
        shape: shape.to_vec(),
        learns: true,
        wide: false,
        factor: 1.0,
    }
}

impl Input {
    fn frozen(self) -> Self {
        Self { learns: false, ..self }
    }

    pub fn wide(self) -> Self {
        Self { wide: true, ..self }
    }

    pub fn times(self, factor: f64) -> Self {
        Self { factor, ..self }
    }
}

impl Case {
    pub fn new(
        name: impl Into<String>,
        inputs: impl IntoIterator<Item = Input>,
        run: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            inputs: inputs.into_iter().collect(),
            run: Box::new(run),
        }
    }

    /// Compares the op on `device` in `dtype` with the CPU in f32, on inputs that are exact in `dtype`.
    pub fn compare(&self, device: &Device, dtype: DType, rng: &mut Rng) -> Result<Vec<Row>> {
        let mut drawn = Vec::new();
        for input in &self.inputs {
            let numbers = rng.randn(input.shape.iter().product());
            let tensor = (Tensor::from_vec(numbers, &input.shape[..], &Device::Cpu)? * input.factor)?;
            let kept = if input.wide { DType::F32 } else { dtype };
            drawn.push(tensor.to_dtype(kept)?);
        }
        let wide: Vec<Tensor> = drawn.iter().map(|x| x.to_dtype(DType::F32)).collect::<Result<_>>()?;
        let shape = (self.run)(&wide)?.shape().clone();
        let gradient = Tensor::from_vec(rng.randn(shape.elem_count()), shape, &Device::Cpu)?.to_dtype(dtype)?;
        let theirs = self.results(&wide, &gradient.to_dtype(DType::F32)?)?;
        let there: Vec<Tensor> = drawn.iter().map(|x| x.to_device(device)).collect::<Result<_>>()?;
        poison(device)?;
        way::take(); // the CPU's
        let ours = self.results(&there, &gradient.to_device(device)?)?;
        let attention = way::take();
        let mut rows = Vec::new();
        for ((what, ours), (_, theirs)) in ours.iter().zip(&theirs) {
            rows.push(Row {
                what: format!("{} {what} {dtype:?}", self.name),
                error: difference(ours, theirs)?,
                most: most(dtype),
                attention: attention.clone(),
            });
        }
        Ok(rows)
    }

    /// Returns the output and the gradients, by name.
    fn results(&self, inputs: &[Tensor], gradient: &Tensor) -> Result<Vec<(String, Tensor)>> {
        let mut given = Vec::new();
        for (input, tensor) in self.inputs.iter().zip(inputs) {
            given.push(match input.learns {
                true => Var::from_tensor(tensor)?.into_inner(),
                false => tensor.clone(),
            });
        }
        let (output, tape) = record(|| (self.run)(&given))?;
        let mut found = tape.backward(&[Cotangent {
            output: output.clone(),
            gradient: gradient.clone(),
        }])?;
        let mut all = vec![("y".to_string(), output.detach())];
        for (input, tensor) in self.inputs.iter().zip(&given).filter(|(input, _)| input.learns) {
            let Some(gradient) = found.remove(tensor)? else {
                candle_core::bail!("{}: no gradient of {}", self.name, input.name);
            };
            all.push((format!("d{}", input.name), gradient));
        }
        Ok(all)
    }
}

/// Returns the ops of a group, in sizes that fill whole packs and in odd ones; none for groups without ops.
pub fn of(group: Group, long: &[Tokens]) -> Vec<Case> {
    match group {
        Group::Norm => blocks::norms(),
        Group::Residual => blocks::residuals(),
        Group::Activation => blocks::activations(),
        Group::Rotary => blocks::rotary(),
        Group::Linear => blocks::linear(),
        Group::Sequence => blocks::sequences(),
        Group::Attention => attention::whole(),
        Group::MaskedAttention => attention::masked(),
        Group::Deterministic => {
            let named = |case: Case| Case {
                name: format!("{}, deterministic", case.name),
                ..case
            };
            attention::whole().into_iter().map(named).collect()
        }
        Group::Convolution => coders::convolutions(),
        Group::FrameNorm => coders::norms(),
        Group::FrameAttention => coders::attentions(),
        Group::LongAttention => attention::long(long),
        _ => Vec::new(),
    }
}
