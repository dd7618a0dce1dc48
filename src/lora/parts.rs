//! Tensors of one layer in an adapter file, before they are joined to an adapter.

use anyhow::{bail, ensure};
use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};

use super::adapters::{Adapter, Deltas};
use super::format::{LayerName, Part};
use super::scales::AlphaSource;
use crate::finite;

/// Parts of one layer found in a file.
#[derive(Debug, Default)]
pub struct Parts {
    a: Option<Tensor>,
    b: Option<Tensor>,
    b_bias: Option<Tensor>,
    alpha: Option<Tensor>,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    twice: bool,
}

impl Parts {
    pub fn put(&mut self, part: Part, tensor: Tensor) {
        let place = match part {
            Part::A => &mut self.a,
            Part::B => &mut self.b,
            Part::BBias => &mut self.b_bias,
            Part::Alpha => &mut self.alpha,
            Part::Weight => &mut self.weight,
            Part::Bias => &mut self.bias,
        };
        self.twice |= place.replace(tensor).is_some();
    }

    /// Returns the layer's adapter, if it has one, and the differences of its parameters.
    ///
    /// # Errors
    /// Fails for parts that make no sense together.
    pub fn take(self, called: LayerName, scales: &mut AlphaSource) -> anyhow::Result<(Option<Adapter>, Deltas)> {
        ensure!(!self.twice, "has tensors of one kind twice, under different names");
        let mut deltas = Deltas::new();
        for (parameter, delta) in [("weight", self.weight), ("bias", self.bias)] {
            let Some(delta) = delta else { continue };
            check(&format!("difference of its {parameter}"), &delta)?;
            ensure!(
                !called.table || parameter == "weight",
                "is a parameter by itself and has no {parameter}"
            );
            let name = match called.table {
                true => called.layer.to_string(),
                false => format!("{}.{parameter}", called.layer),
            };
            deltas.insert(name, delta);
        }
        let adapter = match (self.a, self.b) {
            (Some(a), Some(b)) => Some(low_rank(a, b, self.alpha, called, scales)?),
            // An alpha scales products, not differences.
            (None, None) if !deltas.is_empty() && self.b_bias.is_none() => None,
            _ => bail!("has only one of lora_A and lora_B"),
        };
        if let (Some(adapter), Some(bias)) = (&adapter, self.b_bias) {
            check("bias of lora_B", &bias)?;
            let bias = scaled(&bias, adapter.scale())?;
            let twice = deltas.insert(format!("{}.bias", called.layer), bias).is_some();
            ensure!(!twice, "has both a bias of lora_B and a difference of its bias");
        }
        Ok((adapter, deltas))
    }
}

/// Loads a tensor. Integer types that candle lacks become f64: some programs write alpha in them.
///
/// # Errors
/// Fails for an unknown number format.
pub fn load(view: &TensorView) -> candle_core::Result<Tensor> {
    let bytes = view.data();
    let numbers: Vec<f64> = match view.dtype() {
        Dtype::I8 => bytes.iter().map(|byte| f64::from(byte.cast_signed())).collect(),
        Dtype::U16 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| f64::from(u16::from_le_bytes(*b)))
            .collect(),
        Dtype::U64 => bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|b| u64::from_le_bytes(*b) as f64)
            .collect(),
        _ => return view.load(&Device::Cpu),
    };
    Tensor::from_vec(numbers, view.shape(), &Device::Cpu)
}

/// Checks A and B, and finds their scale.
fn low_rank(
    a: Tensor,
    b: Tensor,
    alpha: Option<Tensor>,
    called: LayerName,
    scales: &mut AlphaSource,
) -> anyhow::Result<Adapter> {
    for (half, tensor) in [("lora_A", &a), ("lora_B", &b)] {
        ensure!(
            (2..=5).contains(&tensor.rank()),
            "has a {half} of shape {:?}, not two sides",
            tensor.dims()
        );
        check(half, tensor)?;
    }
    let rank = a.dim(0)?;
    ensure!(
        rank > 0 && b.dim(1)? == rank,
        "has a lora_A of rank {rank} and a lora_B of rank {}",
        b.dim(1)?
    );
    ensure!(
        b.dims()[2..].iter().all(|side| *side == 1),
        "has a lora_B of shape {:?}, a convolution that sees more than one point",
        b.dims()
    );
    let alpha = alpha.map(|alpha| one_number(&alpha)).transpose()?;
    scales.apply(called, a, b, alpha)
}

/// Checks for finite numbers.
fn check(what: &str, tensor: &Tensor) -> anyhow::Result<()> {
    ensure!(tensor.dtype().is_float(), "has a {what} of {:?}", tensor.dtype());
    if let Some(first) = finite::first(tensor)? {
        bail!("has a {what} that holds {first}");
    }
    Ok(())
}

/// Scales in the tensor's own number format if that is exact, else in f32.
fn scaled(tensor: &Tensor, scale: f64) -> candle_core::Result<Tensor> {
    match scale {
        1.0 => Ok(tensor.clone()),
        scale => (tensor.to_dtype(DType::F64)? * scale)?.to_dtype(DType::F32),
    }
}

fn one_number(alpha: &Tensor) -> anyhow::Result<f64> {
    ensure!(
        alpha.elem_count() == 1,
        "has an alpha of shape {:?}, not one number",
        alpha.dims()
    );
    let alpha = alpha.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?[0];
    ensure!(alpha.is_finite(), "has an alpha of {alpha}");
    Ok(alpha)
}
