//! Merges adapters into a transformer that is written anew, because it is in few bits, or shall be: `decoded(W) + delta`,
//! in f32, stored once.

use candle_core::{DType, Tensor};

use super::Delta;
use crate::lora::adapters::{AdapterFile, Change, changes};
use crate::nn::rewrite::Outcome;
use crate::nn::tensor_folder::{Content, SourceTensor, TensorFolder};

/// Returns why a change of the layer or parameter `name` does not fit; None if it does.
pub fn misfit(folder: &TensorFolder, name: &str, change: Change) -> Option<String> {
    let parameter = change.parameter(name);
    match folder.tensors().iter().find(|tensor| tensor.name == *parameter) {
        Some(tensor) => change.misfit(&tensor.shape),
        None => Some(change.unmatched_layer().into()),
    }
}

/// Returns all changes of these files that do not fit.
pub fn misfits(folder: &TensorFolder, files: &[AdapterFile]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files {
        for (name, change) in changes(&file.layers, &file.deltas) {
            if let Some(why) = misfit(folder, name, change) {
                found.push(format!("{}: {} {name} {why}", file.path.display(), change.noun()));
            }
        }
    }
    found
}

/// Returns true for a tensor that one of the files changes.
pub fn touches(files: &[AdapterFile], tensor: &SourceTensor) -> bool {
    let layer = tensor.name.strip_suffix(".weight");
    files.iter().any(|file| {
        file.deltas.contains_key(&tensor.name) || layer.is_some_and(|layer| file.layers.contains_key(layer))
    })
}

/// Returns a tensor's numbers with all changes, in f32; None if there are none.
pub fn merged(files: &[AdapterFile], folder: &TensorFolder, tensor: &SourceTensor) -> anyhow::Result<Option<Tensor>> {
    if !touches(files, tensor) {
        return Ok(None);
    }
    let (rows, columns) = super::rows_of(&tensor.shape);
    let mut sum = folder.dense(tensor, DType::F32)?.reshape((rows, columns))?;
    for file in files {
        for delta in Delta::of(file, &tensor.name, &tensor.shape)? {
            sum = (sum + delta.rows(0, rows)?)?;
        }
    }
    Ok(Some(sum.reshape(tensor.shape.as_slice())?))
}

/// Returns what becomes of a tensor that is dense afterwards: of one in few bits `dtype`, of others what they are.
pub fn dense(files: &[AdapterFile], tensor: &SourceTensor, dtype: DType) -> Outcome {
    match (&tensor.content, tensor.dtype()) {
        (Content::Stored(_), _) => Outcome::Dense(dtype),
        (Content::Dense(_), Some(own)) if touches(files, tensor) => Outcome::Dense(own),
        (Content::Dense(_), _) => Outcome::AsItIs,
    }
}

/// Returns what becomes of a tensor that is in the same form afterwards; `usual` is the type that one in few bits was in,
/// if its file does not say.
///
/// # Errors
/// Says why a form cannot be written.
pub fn as_it_was(files: &[AdapterFile], tensor: &SourceTensor, usual: DType) -> Result<Outcome, String> {
    match &tensor.content {
        Content::Stored(origin) if touches(files, tensor) => match &origin.form {
            Ok(form) => Ok(Outcome::Stored(*form, origin.dtype.unwrap_or(usual))),
            Err(why) => Err(format!("{} {why}", tensor.name)),
        },
        Content::Stored(_) => Ok(Outcome::AsItIs),
        Content::Dense(_) => Ok(dense(files, tensor, usual)),
    }
}
