//! A folder of weights written anew, tensor by tensor: in few bits, dense, or as they are. Memory holds one dense tensor
//! and its stored form.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Tensor};
use safetensors::tensor::Dtype;
use serde_json::json;

use super::safetensors_writer::SafetensorsWriter;
use super::storage::layout::{FileForm, TensorSpec};
use super::tensor_folder::{Content, SourceTensor, TensorFolder};
use crate::finite;

pub mod gguf;
mod summary;

pub use summary::{Summary, SummaryRow};

/// Name of dense tensors in summaries.
const DENSE: &str = "dense";

/// Outcome of a rewrite for one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is copied, with all its parts.
    AsItIs,
    /// It is written dense in this type.
    Dense(DType),
    /// It is written in few bits, as one that was in this type.
    Stored(FileForm, DType),
}

/// Computes a tensor's new numbers in f32; None if it keeps its own.
pub type Change<'a> = dyn Fn(&TensorFolder, &SourceTensor) -> anyhow::Result<Option<Tensor>> + 'a;

/// A folder and what becomes of its tensors.
pub struct Rewrite<'a> {
    folder: &'a TensorFolder,
    outcomes: Vec<Outcome>,
    change: &'a Change<'a>,
}

/// The change of a folder whose numbers stay.
pub fn unchanged(_: &TensorFolder, _: &SourceTensor) -> anyhow::Result<Option<Tensor>> {
    Ok(None)
}

impl<'a> Rewrite<'a> {
    /// Plan by what `outcome` says of each tensor.
    pub fn new(
        folder: &'a TensorFolder,
        outcome: impl Fn(&SourceTensor) -> Outcome,
        change: &'a Change<'a>,
    ) -> anyhow::Result<Self> {
        let outcomes: Vec<Outcome> = folder.tensors().iter().map(outcome).collect();
        for (tensor, outcome) in folder.tensors().iter().zip(&outcomes) {
            let fits = match outcome {
                Outcome::Stored(..) => tensor.matrix().is_some(),
                Outcome::Dense(dtype) => safetensors_dtype(*dtype).is_some(),
                Outcome::AsItIs => true,
            };
            ensure!(fits, "{} {:?} cannot become {outcome:?}", tensor.name, tensor.shape);
        }
        Ok(Self {
            folder,
            outcomes,
            change,
        })
    }

    /// Returns its tensors with what becomes of them.
    pub fn tensors(&self) -> impl Iterator<Item = (&'a SourceTensor, Outcome)> {
        self.folder.tensors().iter().zip(self.outcomes.iter().copied())
    }

    /// Returns the bytes of the new file, at most; without its header.
    pub fn bytes(&self) -> u64 {
        let specs = self.tensors().flat_map(|(tensor, outcome)| specs(tensor, outcome));
        specs.fold(0, |all, spec| all.saturating_add(spec.bytes()))
    }

    /// Writes the file; `step` is called after each tensor.
    ///
    /// # Errors
    /// Fails for numbers that are not finite, which are named, and if something cannot be read or written.
    pub fn write(&self, to: &Path, mut step: impl FnMut()) -> anyhow::Result<Summary> {
        let all: Vec<TensorSpec> = self
            .tensors()
            .flat_map(|(tensor, outcome)| specs(tensor, outcome))
            .collect();
        let mut writer = SafetensorsWriter::create(to, &self.metadata(), &all)?;
        let mut summary = Summary::default();
        for (tensor, outcome) in self.tensors() {
            let written = self.write_tensor(tensor, outcome, &mut writer);
            let (form, error) = written.with_context(|| tensor.name.clone())?;
            let after = specs(tensor, outcome).iter().map(TensorSpec::bytes).sum();
            summary.add(form, tensor.bytes(), after, error);
            step();
        }
        writer.finish()?;
        Ok(summary)
    }

    /// Writes one tensor; returns the name of its form, and the relative error of storing it.
    fn write_tensor(
        &self,
        tensor: &SourceTensor,
        outcome: Outcome,
        writer: &mut SafetensorsWriter,
    ) -> anyhow::Result<(String, Option<f64>)> {
        let named = |dtype: &str| format!("{DENSE} {dtype}");
        match outcome {
            Outcome::AsItIs => {
                self.folder.parts(tensor, |name, bytes| writer.write(name, bytes))?;
                Ok(match &tensor.content {
                    Content::Dense(dtype) => (named(&format!("{dtype:?}").to_lowercase()), None),
                    Content::Stored(origin) => {
                        let form = origin.form.as_ref().map_or("few bits", |form| form.name());
                        (format!("{form}, as it was"), None)
                    }
                })
            }
            Outcome::Dense(dtype) => {
                let changed = (self.change)(self.folder, tensor)?;
                let numbers = match changed {
                    Some(changed) => changed.to_dtype(dtype)?,
                    None => self.folder.dense(tensor, dtype)?,
                };
                if let Some(found) = finite::first(&numbers)? {
                    bail!("as {} it would hold {found}", dtype.as_str());
                }
                writer.write(&tensor.name, &safetensors::View::data(&numbers))?;
                Ok((named(dtype.as_str()), None))
            }
            Outcome::Stored(form, dtype) => {
                let changed = (self.change)(self.folder, tensor)?;
                let dense = match changed {
                    Some(changed) => changed,
                    None if tensor.is_stored() => self.folder.dense(tensor, DType::F32)?,
                    None => self.folder.dense(tensor, dtype)?,
                };
                let written = form.store(&dense, dtype)?;
                let specs = specs(tensor, outcome);
                for (spec, bytes) in specs.iter().zip(&written.parts) {
                    writer.write(&spec.name, bytes)?;
                }
                let error = summary::relative_error(&dense, &*written.matrix)?;
                Ok((form.name().to_string(), Some(error)))
            }
        }
    }

    /// Returns the metadata of the new file: that of safetensors for torch, and what torchao says of its matrices, which
    /// wants all tensors listed.
    fn metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        let described = self.tensors().map(|(tensor, outcome)| {
            let description = match (outcome, tensor.matrix()) {
                (Outcome::Stored(form, dtype), Some((_, features))) => form.description(features, dtype),
                (Outcome::AsItIs, _) if tensor.is_stored() => self.folder.description(&tensor.name).map(String::from),
                _ => None,
            };
            (&tensor.name, description)
        });
        let described: Vec<(&String, Option<String>)> = described.collect();
        if described.iter().any(|(_, description)| description.is_some()) {
            let names: Vec<&String> = described.iter().map(|(name, _)| *name).collect();
            metadata.insert("tensor_names".into(), json!(names).to_string());
            let plain = || json!({"_type": "Tensor"}).to_string();
            metadata.extend(
                described
                    .into_iter()
                    .map(|(name, description)| (name.clone(), description.unwrap_or_else(plain))),
            );
        }
        metadata
    }
}

/// Returns the tensors of the file that one becomes.
fn specs(tensor: &SourceTensor, outcome: Outcome) -> Vec<TensorSpec> {
    match (outcome, tensor.matrix()) {
        (Outcome::Stored(form, dtype), Some(shape)) => form.parts(&tensor.name, shape, dtype),
        (Outcome::Dense(dtype), _) => {
            let dtype = safetensors_dtype(dtype).unwrap_or(Dtype::F32);
            vec![TensorSpec::new(&tensor.name, dtype, &tensor.shape)]
        }
        _ => tensor.parts.clone(),
    }
}

/// Returns a type as safetensors has it; None for types that are not written.
fn safetensors_dtype(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F64 => Some(Dtype::F64),
        DType::F32 => Some(Dtype::F32),
        DType::F16 => Some(Dtype::F16),
        DType::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}
