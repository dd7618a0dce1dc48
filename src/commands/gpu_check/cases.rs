//! Compares ops on a GPU with the CPU: outputs, and the gradients of all trained inputs.

use std::str::FromStr;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::Group;
use super::row::{Row, difference, most, poison};
use crate::nn::conv3d::{Conv3d, Geometry};
use crate::ops::activation::{gelu_erf, gelu_tanh, silu};
use crate::ops::add::add;
use crate::ops::attention::{attention, way};
use crate::ops::dropout::Mask;
use crate::ops::linear::{Frozen, LowRank};
use crate::ops::modulate::{self, modulated_silu};
use crate::ops::norm::{Norm, NormKind};
use crate::ops::residual::gated_residual;
use crate::ops::rotary::{PairLayout, Rotation};
use crate::ops::tape::record;
use crate::ops::vjp::Cotangent;
use crate::rng::Rng;

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
        Group::Norm => norms(),
        Group::Residual => residuals(),
        Group::Activation => activations(),
        Group::Rotary => rotary(),
        Group::Linear => linear(),
        Group::Attention => attentions(),
        Group::MaskedAttention => masked_attentions(),
        Group::Deterministic => {
            let named = |case: Case| Case {
                name: format!("{}, deterministic", case.name),
                ..case
            };
            attentions().into_iter().map(named).collect()
        }
        Group::Convolution => convolutions(),
        Group::LongAttention => long_attentions(long),
        _ => Vec::new(),
    }
}

fn norms() -> Vec<Case> {
    let norm = |kind, parts: &[usize]| Norm {
        kind,
        eps: 1e-6,
        parts: parts.to_vec(),
    };
    let case = |name, norm: Norm, [batch, samples, width]: [usize; 3]| {
        let (rows, parts) = (norm.parts.iter().sum(), norm.parts.len());
        let table = [samples, parts, width];
        let inputs = [
            input("x", &[batch, rows, width]),
            input("gain", &table).wide(),
            input("offset", &table).wide(),
        ];
        Case::new(name, inputs, move |given| norm.forward(&given[0], &given[1], &given[2]))
    };
    vec![
        case("layer norm", norm(NormKind::Layer, &[300]), [2, 1, 1920]),
        case("layer norm by parts", norm(NormKind::Layer, &[26, 100]), [2, 2, 256]),
        case("layer norm odd", norm(NormKind::Layer, &[7, 12]), [3, 3, 131]),
        case("rms norm", norm(NormKind::Rms, &[200]), [2, 1, 2048]),
        case("rms norm odd", norm(NormKind::Rms, &[5, 6, 8]), [2, 2, 77]),
    ]
}

fn residuals() -> Vec<Case> {
    let case = |name, parts: &'static [usize], [batch, samples, width]: [usize; 3]| {
        let rows = parts.iter().sum();
        let inputs = [
            input("x", &[batch, rows, width]),
            input("update", &[batch, rows, width]),
            input("gate", &[samples, parts.len(), width]).wide(),
        ];
        Case::new(name, inputs, move |given| {
            gated_residual(&given[0], &given[1], &given[2], parts)
        })
    };
    let sum = [input("a", &[3, 17, 93]), input("b", &[3, 17, 93])];
    vec![
        Case::new("sum", sum, |given| add(&given[0], &given[1])),
        case("gated residual", &[226, 400], [2, 2, 1920]),
        case("gated residual odd", &[3, 14], [3, 1, 93]),
    ]
}

fn activations() -> Vec<Case> {
    let shape = [2, 333, 129]; // not a whole number of packs
    let x = || [input("x", &shape).times(2.0)];
    vec![
        Case::new("gelu", x(), |given| gelu_erf(&given[0])),
        Case::new("gelu (tanh)", x(), |given| gelu_tanh(&given[0])),
        Case::new("silu", x(), |given| silu(&given[0])),
    ]
}

fn rotary() -> Vec<Case> {
    let case = |name, pairs, table: &[usize], first| {
        let inputs = [
            input("x", &[2, 40, 6, 64]),
            input("cos", table).frozen().wide(),
            input("sin", table).frozen().wide(),
        ];
        Case::new(name, inputs, move |given| {
            let turn = Rotation {
                cos: given[1].clone(),
                sin: given[2].clone(),
                pairs,
                first,
            };
            turn.forward(&given[0])
        })
    };
    vec![
        case("rotary, neighbours", PairLayout::Neighbours, &[40, 32], 0),
        case("rotary, after text", PairLayout::Neighbours, &[33, 32], 7),
        case("rotary, halves", PairLayout::Halves, &[2, 40, 32], 0),
        case("rotary, halves of parts", PairLayout::HalvesOf(2), &[40, 32], 0),
        case("rotary, by head", PairLayout::Neighbours, &[40, 192], 0),
    ]
}

fn linear() -> Vec<Case> {
    let case = |name, [rows, features, out, rank]: [usize; 4], biased: bool, dropped: Option<Mask>| {
        let small = (features as f64).powf(-0.5);
        let inputs = [
            input("x", &[2, rows, features]),
            input("weight", &[out, features]).frozen().times(small),
            input("bias", &[out]).frozen(),
            input("a", &[rank.max(1), features]).wide().times(small),
            input("b", &[out, rank.max(1)]).wide().times(0.1),
        ];
        let adapted = rank > 0;
        let inputs = inputs.into_iter().map(move |input| Input {
            learns: input.learns && (adapted || input.name == "x"),
            ..input
        });
        Case::new(name, inputs, move |given| {
            let layer = Frozen {
                weight: given[1].clone().into(),
                bias: biased.then(|| given[2].clone()),
            };
            let adapter = LowRank {
                a: &given[3],
                b: &given[4],
                scale: 0.7,
            };
            match adapted {
                true => layer.forward_dropping(&given[0], adapter, dropped),
                false => layer.forward(&given[0]),
            }
        })
    };
    let dropped = Some(Mask::new(0.3, 5, 2));
    vec![
        case("linear", [200, 512, 384, 0], true, None),
        case("linear without bias", [200, 512, 384, 0], false, None),
        case("linear odd", [33, 37, 51, 0], true, None),
        case("lora linear", [200, 512, 384, 32], true, None),
        case("lora linear odd", [33, 37, 51, 5], false, None),
        case("lora linear, dropout", [200, 512, 384, 32], true, dropped),
        case("lora linear odd, dropout", [33, 37, 51, 5], false, dropped),
    ]
}

/// `17776x64`: number of tokens, and features per head.
#[derive(Debug, Clone, Copy)]
pub struct Tokens {
    count: usize,
    width: usize,
}

impl FromStr for Tokens {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let sizes = text.split_once('x').and_then(|(count, width)| {
            let (count, width) = (count.parse().ok()?, width.parse().ok()?);
            (count > 0 && width > 0).then_some(Self { count, width })
        });
        sizes.ok_or_else(|| format!("'{text}' is not of the form TOKENSxFEATURES"))
    }
}

/// Batch, queries, keys, heads, features per head.
type Heads = [usize; 5];

fn attending(name: impl Into<String>, [batch, queries, keys, heads, width]: Heads) -> Case {
    let inputs = [
        input("q", &[batch, queries, heads, width]),
        input("k", &[batch, keys, heads, width]),
        input("v", &[batch, keys, heads, width]),
    ];
    Case::new(name, inputs, |given| attention(&given[0], &given[1], &given[2], None))
}

fn attentions() -> Vec<Case> {
    vec![
        attending("attention 64", [2, 333, 333, 3, 64]),
        attending("attention 128", [1, 300, 300, 2, 128]),
        attending("attention across", [2, 200, 77, 3, 96]),
        attending("attention 256", [1, 70, 90, 1, 256]),
        attending("attention tiled", [2, 45, 61, 3, 12]), // not a multiple of 8 features: never cuDNN's
    ]
}

/// Attention of one head over as many tokens as in a clip.
fn long_attentions(long: &[Tokens]) -> Vec<Case> {
    let case = |Tokens { count, width }: &Tokens| {
        attending(format!("attention {count} x {width}"), [1, *count, *count, 1, *width])
    };
    long.iter().map(case).collect()
}

fn masked_attentions() -> Vec<Case> {
    let case = |name, [batch, queries, keys, heads, width]: Heads| {
        let inputs = [
            input("q", &[batch, queries, heads, width]),
            input("k", &[batch, keys, heads, width]),
            input("v", &[batch, keys, heads, width]),
        ];
        Case::new(name, inputs, move |given| {
            let length = |sample: usize| keys - (sample + 1) * keys / 4; // the fourth sample sees none
            let hidden = |at: usize| at % keys >= length(at / keys);
            let mask: Vec<f32> = (0..batch * keys)
                .map(|at| if hidden(at) { f32::NEG_INFINITY } else { 0.0 })
                .collect();
            let mask = Tensor::from_vec(mask, (batch, 1, 1, keys), given[0].device())?;
            attention(&given[0], &given[1], &given[2], Some(&mask))
        })
    };
    vec![
        case("attention 64, padded keys", [2, 130, 96, 3, 64]),
        case("attention tiled, padded keys", [2, 45, 61, 3, 12]),
        case("attention 64, a sample without keys", [4, 70, 96, 2, 64]),
        case("attention tiled, a sample without keys", [4, 45, 60, 3, 12]),
    ]
}

/// Layers of autoencoders, without gradients.
fn convolutions() -> Vec<Case> {
    let table = [2, 2, 3, 3, 72];
    let modulated = |name, rms_eps| {
        let inputs = [
            input("x", &[2, 3, 6, 7, 72]).frozen(),
            input("scale", &table).frozen().wide(),
            input("shift", &table).frozen().wide().times(5.0),
        ];
        Case::new(name, inputs, move |given| {
            let (scale, shift) = (&given[1], &given[2]);
            modulated_silu(&given[0], modulate::Modulation { scale, shift, rms_eps })
        })
    };
    let convolved = [
        input("x", &[2, 3, 9, 10, 72]).frozen(),
        input("weight", &[40, 72, 3, 3, 3]).frozen().times(0.02),
        input("bias", &[40]).frozen(),
    ];
    vec![
        modulated("modulated silu", None),
        modulated("modulated silu, rms norm", Some(1e-8)),
        Case::new("convolution", convolved, |given| {
            let conv = Conv3d::by_candle(&given[1], &given[2], Geometry::CAUSAL)?;
            Ok(conv.forward((&given[0]).into())?.0)
        }),
    ]
}

/// Compares two runs of attention in bf16 and its gradients: the same bits, if required.
pub fn repeated(device: &Device, rng: &mut Rng) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for case in attentions() {
        let mut draw = |shape: &[usize]| {
            let numbers = rng.randn(shape.iter().product());
            Tensor::from_vec(numbers, shape, &Device::Cpu)?
                .to_dtype(DType::BF16)?
                .to_device(device)
        };
        let inputs: Vec<Tensor> = case
            .inputs
            .iter()
            .map(|input| draw(&input.shape))
            .collect::<Result<_>>()?;
        let gradient = draw(&case.inputs[0].shape)?; // the output is as the queries
        way::take();
        let [first, second] = [(); 2].map(|()| case.results(&inputs, &gradient));
        let attention = way::take();
        for ((what, first), (_, second)) in first?.iter().zip(&second?) {
            rows.push(Row {
                what: format!("{} {what} once more", case.name),
                error: difference(second, first)?,
                most: 0.0,
                attention: attention.clone(),
            });
        }
    }
    Ok(rows)
}
