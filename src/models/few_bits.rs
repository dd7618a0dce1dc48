//! Parts of a checkpoint in few bits, as diffusers and transformers have them: which tensors are stored, and what
//! config.json says of it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use candle_core::DType;
use serde_json::{Map, Value};

use super::family::FamilySpec;
use crate::diffusers_config as config;
use crate::nn::gguf::GgufFile;
use crate::nn::rewrite::Outcome;
use crate::nn::storage::layout::FileForm;
use crate::nn::storage::quantize::stays_dense;
use crate::nn::tensor_file;
use crate::nn::tensor_folder::{SourceTensor, TensorFolder};
use crate::text::{llama, t5};

/// Key of config.json.
const KEY: &str = "quantization_config";

/// Type that a matrix in few bits was in, if its file does not say.
pub const USUAL: DType = DType::BF16;

/// Returns the name of the form that config.json in a folder says; None if it says none, or is not read.
pub fn form_of(folder: &Path) -> Option<String> {
    let text = config::text(&folder.join("config.json")).ok()?;
    let config: Value = serde_json::from_str(&text).ok()?;
    let quantization = config.get(KEY)?;
    let says = |key: &str| quantization.get(key).and_then(Value::as_bool) == Some(true);
    let form = |pointer: &str| quantization.pointer(pointer).and_then(Value::as_str);
    match form("/quant_method")? {
        "bitsandbytes" if says("load_in_8bit") => Some(FileForm::BitsandbytesInt8.name().into()),
        "bitsandbytes" => Some(form("/bnb_4bit_quant_type").unwrap_or("fp4").into()), // the default there
        other => match form("/quant_type/default/_type") {
            Some("Int8WeightOnlyConfig") => Some(FileForm::Int8.name().into()),
            Some("Float8WeightOnlyConfig") => Some(FileForm::Fp8Scaled.name().into()),
            Some(kind) => Some(format!("{other} {kind}")),
            None => Some(other.into()),
        },
    }
}

/// Returns the form of most numbers in a GGUF file's matrices of blocks, of several the last by name; None if it has none,
/// and for other files.
pub fn form_of_file(path: &Path) -> Option<String> {
    let file = tensor_file::is_gguf(path).then(|| GgufFile::open(path).ok())??;
    let mut numbers = BTreeMap::new();
    for entry in file.header().tensors.values().filter(|entry| entry.is_stored_matrix()) {
        *numbers.entry(entry.kind.name()).or_insert(0) += entry.shape.iter().product::<usize>();
    }
    let (name, _) = numbers.into_iter().max_by_key(|(_, numbers)| *numbers)?;
    Some(name.to_lowercase())
}

/// A part that is stored in few bits.
#[derive(Debug, Clone, Copy)]
pub enum StoredPart {
    /// The transformer of a family.
    Transformer(&'static FamilySpec),
    /// A T5 or LLaMA.
    TextEncoder,
}

impl StoredPart {
    /// Folder in a checkpoint.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Transformer(_) => "transformer",
            Self::TextEncoder => "text_encoder",
        }
    }

    /// File of its weights.
    pub fn file(self) -> &'static str {
        match self {
            Self::Transformer(_) => "diffusion_pytorch_model.safetensors",
            Self::TextEncoder => "model.safetensors",
        }
    }

    /// Returns true for the weight of a linear layer.
    pub fn is_linear(self, tensor: &SourceTensor) -> bool {
        let layer = tensor.name.strip_suffix(".weight");
        let there = tensor.matrix().is_some_and(|(rows, columns)| rows > 0 && columns > 0);
        there
            && layer.is_some_and(|layer| match self {
                Self::Transformer(spec) => spec.names.is_linear(layer),
                Self::TextEncoder => t5::is_linear(layer) || llama::is_linear(layer),
            })
    }

    /// Returns what becomes of a tensor where linear layers get a form, and all numbers are rounded to `dtype` before, if
    /// it is given; diffusers keeps some modules in the type that they have.
    pub fn outcome(self, tensor: &SourceTensor, form: FileForm, dtype: Option<DType>) -> Outcome {
        let own = tensor.dtype();
        if self.is_linear(tensor) && !self.keeps(&tensor.name, form) {
            return Outcome::Stored(form, dtype.or(own).unwrap_or(USUAL));
        }
        match (dtype, own) {
            _ if tensor.is_stored() => Outcome::Dense(dtype.or(own).unwrap_or(USUAL)),
            (Some(dtype), Some(own)) if dtype != own && !self.in_own_type(&tensor.name) => Outcome::Dense(dtype),
            _ => Outcome::AsItIs,
        }
    }

    /// Returns true for a linear layer that stays dense where others get a form.
    fn keeps(self, path: &str, form: FileForm) -> bool {
        match self {
            Self::Transformer(spec) => stays_dense(&spec.dense_modules.of(form.quantization()), path),
            Self::TextEncoder => false,
        }
    }

    fn in_own_type(self, path: &str) -> bool {
        match self {
            Self::Transformer(spec) => stays_dense(spec.dense_modules.keep_in_fp32, path),
            Self::TextEncoder => path.ends_with(&format!("{}.weight", t5::DENSE)),
        }
    }

    /// Returns config.json with what a form needs there, and nothing of another form; `dtype` is as in
    /// [`outcome`](Self::outcome).
    ///
    /// # Errors
    /// Fails for a text that is no JSON object.
    pub fn config(
        self,
        text: &str,
        form: Option<FileForm>,
        folder: &TensorFolder,
        dtype: Option<DType>,
    ) -> anyhow::Result<String> {
        let mut config: Map<String, Value> = serde_json::from_str(text).context("is not a JSON object")?;
        config.shift_remove(KEY);
        let quantization = form.and_then(|form| {
            let own = folder.tensors().iter().filter(|tensor| self.is_linear(tensor));
            let own = own.filter_map(SourceTensor::dtype).next();
            form.quantization_config(&self.dense_layers(form, folder), dtype.or(own).unwrap_or(USUAL))
        });
        if let Some(quantization) = quantization {
            config.insert(KEY.into(), quantization);
        }
        Ok(format!("{:#}\n", Value::Object(config)))
    }

    /// Returns the linear layers that stay dense although their class does not say so.
    fn dense_layers(self, form: FileForm, folder: &TensorFolder) -> Vec<String> {
        match self {
            Self::Transformer(_) => {
                let dense = folder.tensors().iter().filter(|tensor| {
                    self.is_linear(tensor) && self.keeps(&tensor.name, form) && !self.in_own_type(&tensor.name)
                });
                let layers = dense.filter_map(|tensor| tensor.name.strip_suffix(".weight"));
                layers.map(String::from).collect()
            }
            // Otherwise transformers guesses.
            Self::TextEncoder => vec![t5::DENSE.into()],
        }
    }
}
