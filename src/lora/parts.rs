//! Tensors of one layer in an adapter file, before they are joined to an adapter.

use std::ops::Range;

use anyhow::{bail, ensure};
use candle_core::safetensors::Load;
use candle_core::{DType, Device, Result, Tensor};
use safetensors::tensor::{Dtype, TensorView};

use super::adapters::{Adapter, Deltas};
use super::format::{LayerName, Part};
use super::scales::AlphaSource;
use crate::finite;
use crate::nn::fused_rows;

/// Parts of one layer found in a file.
#[derive(Debug, Default)]
pub struct Parts {
    pub(super) a: Option<Tensor>,
    pub(super) b: Option<Tensor>,
    pub(super) b_bias: Option<Tensor>,
    alpha: Option<Tensor>,
    pub(super) weight: Option<Tensor>,
    pub(super) bias: Option<Tensor>,
    twice: bool,
    /// Rank that alpha is for, if A has fewer rows than it had in the file.
    rank_in_file: Option<usize>,
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

    /// Returns the layer's outputs, and its inputs if a matrix is there.
    pub fn sides(&self) -> Option<(usize, Option<usize>)> {
        let side = |tensor: &Option<Tensor>, at: usize| tensor.as_ref()?.dims().get(at).copied();
        let outputs = [&self.b, &self.weight, &self.bias, &self.b_bias];
        let outputs = outputs.into_iter().find_map(|tensor| side(tensor, 0))?;
        Some((outputs, side(&self.a, 1).or_else(|| side(&self.weight, 1))))
    }

    /// Returns what belongs to these rows of the layer, with these columns of B alone, if any are given.
    ///
    /// # Errors
    /// Fails for rows or columns that there are not.
    pub fn cut(&self, rows: &[Range<usize>], columns: Option<&Range<usize>>) -> Result<Self> {
        let rows = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| fused_rows::take(tensor, rows)).transpose();
        let columns_of = |tensor: Option<Tensor>, side: usize| match (tensor, columns) {
            (_, Some(columns)) if columns.is_empty() => Ok(None),
            (Some(tensor), Some(columns)) => tensor
                .narrow(side, columns.start, columns.len())?
                .contiguous()
                .map(Some),
            (tensor, _) => Ok(tensor),
        };
        let rank = self.a.as_ref().map(|a| a.dim(0)).transpose()?;
        Ok(Self {
            a: columns_of(self.a.clone(), 0)?,
            b: columns_of(rows(&self.b)?, 1)?,
            b_bias: rows(&self.b_bias)?,
            alpha: self.alpha.clone(),
            weight: rows(&self.weight)?,
            bias: rows(&self.bias)?,
            twice: self.twice,
            rank_in_file: rank,
        })
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
            (Some(a), Some(b)) => {
                let alpha = AlphaInFile {
                    tensor: self.alpha,
                    rank: self.rank_in_file,
                };
                Some(low_rank(a, b, alpha, called, scales)?)
            }
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
pub fn load(view: &TensorView) -> Result<Tensor> {
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
    alpha: AlphaInFile,
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
    let number = alpha.tensor.map(|alpha| one_number(&alpha)).transpose()?;
    scales.apply(called, a, b, (number, alpha.rank.unwrap_or(rank)))
}

/// Alpha as the file has it.
struct AlphaInFile {
    tensor: Option<Tensor>,
    /// Rank of the adapter there, if it is not that of A.
    rank: Option<usize>,
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
fn scaled(tensor: &Tensor, scale: f64) -> Result<Tensor> {
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
