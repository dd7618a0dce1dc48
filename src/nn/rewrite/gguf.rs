//! A folder of weights as a GGUF file, tensor by tensor.

use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Device};

use super::Summary;
use super::summary::relative_error;
use crate::nn::gguf::{GgufTensor, GgufWriter, Value};
use crate::nn::storage::ggml;
use crate::nn::tensor_folder::{SourceTensor, TensorFolder};
use crate::ops::stored::StoredMatrix;

/// A tensor of the folder, and what it becomes.
#[derive(Debug, Clone)]
pub struct GgufOutcome<'a> {
    /// Tensor of the folder.
    pub source: &'a SourceTensor,
    /// Type that its numbers are rounded to before.
    pub dtype: DType,
    /// Tensor of the file.
    pub tensor: GgufTensor,
}

/// Writes the file; `step` is called after each tensor.
///
/// # Errors
/// Fails for numbers that a type cannot hold, which are named, and if something cannot be read or written.
pub fn write(
    folder: &TensorFolder,
    outcomes: &[GgufOutcome],
    metadata: &[(&str, Value)],
    to: &Path,
    mut step: impl FnMut(),
) -> anyhow::Result<Summary> {
    let tensors = outcomes.iter().map(|outcome| outcome.tensor.clone()).collect();
    let mut writer = GgufWriter::create(to, metadata, tensors)?;
    let mut summary = Summary::default();
    for GgufOutcome { source, dtype, tensor } in outcomes {
        let within = || source.name.clone();
        let features = tensor.shape.last().copied().unwrap_or(1);
        let rows: usize = tensor.shape.iter().rev().skip(1).product();
        let dense = folder.dense(source, *dtype).with_context(within)?;
        let dense = dense.reshape((rows, features))?;
        let stored = ggml::quantize(&dense, tensor.kind, &Device::Cpu).with_context(within)?;
        let error = match tensor.kind.block() {
            1 => None,
            _ => Some(relative_error(&dense, &stored)?),
        };
        summary.add(tensor.kind.name().into(), source.bytes(), stored.bytes() as u64, error);
        writer.write(&tensor.name, stored.into_format().bytes.to_vec())?;
        step();
    }
    writer.finish()?;
    Ok(summary)
}
