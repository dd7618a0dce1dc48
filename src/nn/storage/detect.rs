//! Stored forms of a checkpoint's matrices, by the names and types in its headers and the `quantization_config` of its
//! config.json.
//!
//! The names decide, because files without a config.json have them too; a config that says otherwise is an error. So is
//! whatever looks stored but is not read: no tensor passes for a dense one that is none.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{bail, ensure};
use candle_core::{Device, Result};
use safetensors::tensor::{Dtype, Metadata};
use serde_json::Value;

use super::bitsandbytes_4bit::{self, FourBitCode};
use super::float8::{self, Float8Kind};
use super::part::Parts;
use super::{bitsandbytes_int8, torchao};
use crate::ops::stored::StoredMatrix;

/// Problems that are named.
const SHOWN: usize = 8;

/// Names, types and metadata in the headers of a checkpoint's files.
#[derive(Debug, Clone, Default)]
pub struct Headers {
    /// Type and shape of each tensor.
    pub tensors: BTreeMap<String, (Dtype, Vec<usize>)>,
    /// Metadata of the files.
    pub metadata: HashMap<String, String>,
}

/// A form of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// bitsandbytes nf4 or fp4.
    FourBit(FourBitCode),
    /// bitsandbytes LLM.int8().
    Int8Rows,
    /// fp8, with the scales in this tensor, and the format in the other.
    Float8 {
        /// Tensor of scales.
        scale: Option<String>,
        /// Tensor of ComfyUI's JSON.
        comfy_quant: Option<String>,
    },
    /// torchao int8.
    TorchaoInt8,
    /// torchao float8.
    TorchaoFloat8,
}

/// The form of one matrix, and the tensors that it is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredForm {
    /// The form.
    pub form: Form,
    /// Every tensor that belongs to the matrix.
    pub parts: Vec<String>,
}

/// The stored matrices of a checkpoint. Tensors that belong to none are dense.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredForms {
    /// Forms by the path of the weight, such as `blocks.0.ff.weight`, which need not be a tensor of this name.
    pub matrices: BTreeMap<String, StoredForm>,
    /// Tensors that only mark a file.
    pub markers: Vec<String>,
}

impl StoredForm {
    /// Returns the shape of the matrix `path`, as the headers or, for bitsandbytes' 4 bits, its description have it.
    ///
    /// # Errors
    /// Fails for a part that is missing, or a description that cannot be read.
    pub fn shape(&self, parts: &dyn Parts, path: &str) -> Result<Vec<usize>> {
        match &self.form {
            Form::FourBit(code) => bitsandbytes_4bit::shape(parts, path, *code),
            Form::Int8Rows | Form::Float8 { .. } => Ok(parts.part(path)?.shape().to_vec()),
            Form::TorchaoInt8 | Form::TorchaoFloat8 => {
                Ok(parts.part(&torchao::part_name(path, "qdata"))?.shape().to_vec())
            }
        }
    }

    /// Reads the matrix `path`, of this shape.
    ///
    /// # Errors
    /// Fails for parts that are missing, of another size, or at odds.
    pub fn read(
        &self,
        parts: &dyn Parts,
        path: &str,
        shape: (usize, usize),
        device: &Device,
    ) -> Result<Arc<dyn StoredMatrix>> {
        let layer = path.strip_suffix(".weight").unwrap_or(path);
        match &self.form {
            Form::FourBit(code) => bitsandbytes_4bit::read(parts, path, *code, shape, device)?.placed(),
            Form::Int8Rows => bitsandbytes_int8::read(parts, layer, shape, device)?.placed(),
            Form::Float8 { scale, comfy_quant } => {
                if let Some(name) = comfy_quant {
                    float8::check_comfy_quant(parts, name)?;
                }
                float8::read(parts, path, scale.as_deref(), shape, device)?.placed()
            }
            Form::TorchaoInt8 => torchao::read_int8(parts, path, shape, device)?.placed(),
            Form::TorchaoFloat8 => torchao::read_float8(parts, path, shape, device)?.placed(),
        }
    }
}

impl Headers {
    /// Adds the header of a file.
    pub fn add(&mut self, header: &Metadata) {
        let tensors = header.tensors().into_iter();
        self.tensors
            .extend(tensors.map(|(name, info)| (name, (info.dtype, info.shape.clone()))));
        self.metadata.extend(header.metadata().clone().unwrap_or_default());
    }

    /// Finds the stored matrices; `quantization` is the config's `quantization_config`.
    ///
    /// # Errors
    /// Fails, with all problems, for forms that are not read, and for a config without the matrices that it promises.
    pub fn stored_forms(&self, quantization: Option<&Value>) -> anyhow::Result<StoredForms> {
        let method = method(quantization)?;
        let (mut found, mut problems) = (StoredForms::default(), Vec::new());
        self.torchao(&mut found, &mut problems);
        for (name, (dtype, shape)) in &self.tensors {
            if let Some(program) = foreign(name) {
                problems.push(format!("{name} is of {program}"));
            } else if name == "scaled_fp8" || name.ends_with(".scaled_fp8") {
                found.markers.push(name.clone());
            } else if let Some(path) = name.strip_suffix(".weight") {
                match self.form(path, *dtype, shape) {
                    Ok(Some(form)) => _ = found.matrices.insert(name.clone(), form),
                    Ok(None) => {}
                    Err(problem) => problems.push(format!("{name} {problem}")),
                }
            }
        }
        ensure!(
            problems.is_empty(),
            "{} tensors are stored in a form that is not read (read are bitsandbytes nf4, fp4 and int8, torchao int8 and \
             float8, fp8 with and without scales):\n  {}{}",
            problems.len(),
            problems
                .iter()
                .take(SHOWN)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join("\n  "),
            if problems.len() > SHOWN { "\n  ..." } else { "" }
        );
        if let Some(method) = method {
            method.check(&found)?;
        }
        Ok(found)
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns the tensors of these names that are there.
    fn present(&self, names: impl IntoIterator<Item = String>) -> Vec<String> {
        names.into_iter().filter(|name| self.has(name)).collect()
    }

    /// Returns the form of the tensor `layer`.weight; None for a dense one. An error says what is wrong with it.
    fn form(&self, layer: &str, dtype: Dtype, shape: &[usize]) -> std::result::Result<Option<StoredForm>, String> {
        let weight = format!("{layer}.weight");
        for code in [FourBitCode::Nf4, FourBitCode::Fp4] {
            let state = format!("{weight}.quant_state.bitsandbytes__{}", code.name());
            if self.has(&state) {
                let others = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"];
                let parts = self.present(others.map(|part| format!("{weight}.{part}")));
                return Ok(Some(StoredForm {
                    form: Form::FourBit(code),
                    parts: [vec![weight, state], parts].concat(),
                }));
            }
        }
        if Float8Kind::of(dtype).is_some() {
            return self.float8(layer, shape);
        }
        if self.has(&format!("{layer}.comfy_quant")) {
            return Err(format!("is {dtype:?} of ComfyUI"));
        }
        match dtype {
            Dtype::I8 if self.has(&format!("{layer}.SCB")) => Ok(Some(StoredForm {
                form: Form::Int8Rows,
                parts: self.present(["weight", "SCB", "weight_format"].map(|part| format!("{layer}.{part}"))),
            })),
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(None),
            _ => Err(format!("is {dtype:?}, without the parts of a form that is read")),
        }
    }

    fn float8(&self, layer: &str, shape: &[usize]) -> std::result::Result<Option<StoredForm>, String> {
        let name = |part: &str| format!("{layer}.{part}");
        let scales = self.present(["scale_weight", "weight_scale"].map(name));
        let comfy_quant = self.present([name("comfy_quant")]).pop();
        if shape.len() != 2 {
            return match scales.is_empty() {
                true => Ok(None), // dense, of a number format like any other
                false => Err(format!("{shape:?} is in scaled fp8, but no matrix")),
            };
        }
        let activations = ["scale_input", "input_scale"].map(name);
        let parts = [vec![name("weight")], scales.clone(), self.present(activations)].concat();
        Ok(Some(StoredForm {
            parts: parts.into_iter().chain(comfy_quant.clone()).collect(),
            form: Form::Float8 {
                scale: scales.into_iter().next(),
                comfy_quant,
            },
        }))
    }

    /// Finds torchao's matrices, which the metadata lists.
    fn torchao(&self, found: &mut StoredForms, problems: &mut Vec<String>) {
        let mut listed: Vec<_> = self.metadata.iter().collect();
        listed.sort();
        for (path, json) in listed {
            let Ok(Value::Object(described)) = serde_json::from_str(json) else {
                continue;
            };
            let form = match described.get("_type").and_then(Value::as_str) {
                None | Some("Tensor") => continue,
                Some("Int8Tensor") => Form::TorchaoInt8,
                Some("Float8Tensor") => Form::TorchaoFloat8,
                Some(other) => {
                    problems.push(format!("{path} is torchao's {other}"));
                    continue;
                }
            };
            let name = |part: &str| torchao::part_name(path, part);
            if self.has(&name("act_pre_scale")) {
                problems.push(format!("{path} is torchao's with scales for its inputs"));
                continue;
            }
            let parts = [
                "qdata",
                "scale",
                "zero_point",
                "act_quant_scale",
                "act_quant_zero_point",
            ]
            .map(name);
            let parts = self.present(parts);
            found.matrices.insert(path.clone(), StoredForm { form, parts });
        }
        self.ensure_listed(found, problems);
    }

    /// Finds tensors of torchao that no metadata lists.
    fn ensure_listed(&self, found: &StoredForms, problems: &mut Vec<String>) {
        for name in self.tensors.keys() {
            let Some(layer) = name.strip_suffix("_weight_qdata") else {
                continue;
            };
            if problems.is_empty() && !found.matrices.contains_key(&format!("{layer}weight")) {
                problems.push(format!(
                    "{name} is torchao's, but the file's metadata does not describe it"
                ));
            }
        }
    }
}

/// Name of the program that a tensor is of, if its form is not read.
fn foreign(name: &str) -> Option<&'static str> {
    let forms = [
        (".qweight", "GPTQ, AWQ or SVDQuant"),
        (".weight._data", "quanto"),
        (".weight_packed", "compressed-tensors"),
        (".weight_scale_2", "NVFP4"),
        (".weight_scale_inv", "fp8 in blocks of DeepSeek's"),
    ];
    forms
        .iter()
        .find(|(end, _)| name.ends_with(end))
        .map(|(_, program)| *program)
}

/// The programs of `quant_method` whose forms are read.
#[derive(Debug, Clone, Copy)]
enum Method {
    BitsAndBytes,
    Torchao,
}

fn method(quantization: Option<&Value>) -> anyhow::Result<Option<Method>> {
    match quantization.map(|config| (config, config.get("quant_method"))) {
        None => Ok(None),
        Some((_, Some(Value::String(name)))) if name == "bitsandbytes" => Ok(Some(Method::BitsAndBytes)),
        Some((_, Some(Value::String(name)))) if name == "torchao" => Ok(Some(Method::Torchao)),
        Some((Value::Null, _)) => Ok(None),
        Some((_, method)) => bail!(
            "quantization_config.quant_method is {}, which is not read; read are \"bitsandbytes\" and \"torchao\"",
            method.unwrap_or(&Value::Null)
        ),
    }
}

impl Method {
    fn check(self, found: &StoredForms) -> anyhow::Result<()> {
        let has = |of: fn(&Form) -> bool| found.matrices.values().any(|stored| of(&stored.form));
        match self {
            Self::BitsAndBytes => ensure!(
                has(|form| matches!(form, Form::FourBit(_) | Form::Int8Rows)),
                "quantization_config says bitsandbytes, but no tensor is stored so; save the model again with bitsandbytes \
                 0.43 or newer, in safetensors"
            ),
            Self::Torchao => ensure!(
                has(|form| matches!(form, Form::TorchaoInt8 | Form::TorchaoFloat8)),
                "quantization_config says torchao, but the metadata describes no matrix of its; save the model again with \
                 torchao 0.16 or newer, in safetensors"
            ),
        }
        Ok(())
    }
}
