//! Transformers as GGUF files, as ComfyUI-GGUF reads them: original names, linear layers in one type. Few programs read
//! such files of video models, and each knows its families by name.

use anyhow::bail;
use candle_core::DType;

use super::family::FamilySpec;
use super::few_bits::StoredPart;
use super::gguf_spec::GgufSpec;
use crate::nn::gguf::{GgufTensor, Value};
use crate::nn::rewrite::gguf::GgufOutcome;
use crate::nn::storage::ggml::GgmlType;
use crate::nn::storage::quantize::stays_dense;
use crate::nn::tensor_folder::{SourceTensor, TensorFolder};

/// Tensors with at most this many numbers are in f32.
const SMALL: usize = 1024;

/// Version of the types' layouts.
const QUANTIZATION_VERSION: u64 = 2;

/// Problems that are named.
const SHOWN: usize = 8;

/// Returns the metadata of a file whose linear layers are in a type.
pub fn metadata(spec: GgufSpec, kind: GgmlType) -> [(&'static str, Value); 3] {
    [
        ("general.architecture", Value::Text(spec.architecture.into())),
        ("general.quantization_version", Value::Unsigned(QUANTIZATION_VERSION)),
        ("general.file_type", Value::Unsigned(file_type(kind))),
    ]
}

/// Returns the number of a file whose linear layers are all in one type: `LlamaFileType`.
fn file_type(kind: GgmlType) -> u64 {
    match kind {
        GgmlType::F32 => 0,
        GgmlType::F16 => 1,
        GgmlType::Q4_0 => 2,
        GgmlType::Q4_1 => 3,
        GgmlType::Q8_0 => 7,
        GgmlType::Q5_0 => 8,
        GgmlType::Q5_1 => 9,
        GgmlType::Q2K => 10,
        GgmlType::Q3K => 11,
        GgmlType::Q4K => 14,
        GgmlType::Q5K => 16,
        GgmlType::Q6K => 18,
        GgmlType::BF16 => 32,
    }
}

/// Returns what becomes of each tensor of a transformer.
///
/// # Errors
/// Names all tensors that have no original name, or hold no numbers with a point; fails for families whose layers are
/// joined in such files.
pub fn outcomes<'a>(
    family: &'static FamilySpec,
    spec: GgufSpec,
    folder: &'a TensorFolder,
    kind: GgmlType,
    dtype: Option<DType>,
) -> anyhow::Result<Vec<GgufOutcome<'a>>> {
    if let Some(fused) = family.names.fused.first() {
        bail!(
            "GGUF files of {} have matrices that are several here, such as {}, and none are written; those of others are read",
            family.title,
            fused.original
        );
    }
    let (mut outcomes, mut problems) = (Vec::new(), Vec::new());
    for source in folder.tensors() {
        match (family.names.original_tensor(&source.name), source.dtype()) {
            (None, _) => problems.push(format!("{} has no original name", source.name)),
            (_, None) => problems.push(format!("{} holds no numbers with a point", source.name)),
            (Some(name), Some(own)) => {
                let dtype = dtype.unwrap_or(own);
                let kind = kind_of(family, spec, source, &name, kind, dtype);
                let shape = source.shape.clone();
                outcomes.push(GgufOutcome {
                    source,
                    dtype,
                    tensor: GgufTensor { name, kind, shape },
                });
            }
        }
    }
    if !problems.is_empty() {
        let shown: Vec<&str> = problems.iter().take(SHOWN).map(String::as_str).collect();
        let more = if problems.len() > SHOWN { "\n  ..." } else { "" };
        bail!(
            "{} tensors cannot be in a GGUF file of {}:\n  {}{more}",
            problems.len(),
            family.title,
            shown.join("\n  ")
        );
    }
    Ok(outcomes)
}

/// Returns true for a tensor in few bits.
fn is_in_few_bits(family: &'static FamilySpec, spec: GgufSpec, source: &SourceTensor, name: &str) -> bool {
    let large = source.shape.iter().product::<usize>() > SMALL;
    large && StoredPart::Transformer(family).is_linear(source) && !stays_dense(spec.dense, name)
}

/// Counts the matrices that have another type than `kind`, because their rows are no whole blocks of it.
pub fn in_more_bits(family: &'static FamilySpec, spec: GgufSpec, outcomes: &[GgufOutcome], kind: GgmlType) -> usize {
    let stored = outcomes
        .iter()
        .filter(|GgufOutcome { source, tensor, .. }| is_in_few_bits(family, spec, source, &tensor.name));
    stored.filter(|outcome| outcome.tensor.kind != kind).count()
}

/// Returns the type of a tensor: few bits for linear layers, f16 or bf16 for those that stay dense, f32 for all else.
fn kind_of(
    family: &'static FamilySpec,
    spec: GgufSpec,
    source: &SourceTensor,
    name: &str,
    kind: GgmlType,
    dtype: DType,
) -> GgmlType {
    let large = source.shape.iter().product::<usize>() > SMALL;
    match large && StoredPart::Transformer(family).is_linear(source) {
        false => GgmlType::F32,
        true if is_in_few_bits(family, spec, source, name) => kind.fallback(source.shape.last().copied().unwrap_or(1)),
        true if dtype == DType::BF16 => GgmlType::BF16,
        true => GgmlType::F16,
    }
}
