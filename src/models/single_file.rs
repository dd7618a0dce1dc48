//! Messages for a single file, or a folder in another layout, that is given in place of a diffusers checkpoint.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::lora::format;
use crate::magic;
use crate::nn::tensor_file::is_gguf;

/// Upper limit of safetensors for a header.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// Description of a diffusers checkpoint, for messages.
const WANTED: &str = "a diffusers directory with model_index.json, transformer/, vae/ and so on";

/// Explains what the file at `path` is, and what to give instead.
pub fn explain(path: &Path) -> String {
    if is_gguf(path) {
        return format!(
            "is a GGUF file: give it as model.transformer (--transformer), and as model.path (--model) {WANTED}"
        );
    }
    if let Some(what) = magic::explain(path) {
        return format!("is {what}. A model is {WANTED}");
    }
    let Some(tensors) = tensors(path) else {
        return format!("is a file; a model is {WANTED}");
    };
    let adapters = tensors.iter().filter(|name| format::name(name).is_ok()).count();
    if adapters * 2 > tensors.len() {
        return format!("is an adapter file, which --lora and lora.init take; a model is {WANTED}");
    }
    format!(
        "is a single file of weights, as ComfyUI takes it: give the family's diffusers directory as model.path (--model), and \
         this file as model.transformer (--transformer). The makers' repositories have {WANTED} (their names often end in \
         -Diffusers)"
    )
}

/// Explains what a directory without `model_index.json` may be: "" if nothing is recognised.
pub fn nearby(directory: &Path) -> String {
    let has = |name: &str| directory.join(name).exists();
    if has("config.json")
        && directory
            .parent()
            .is_some_and(|parent| parent.join("model_index.json").exists())
    {
        return ", but a part of one; give the folder above it".into();
    }
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    files.retain(|name| {
        [".safetensors", ".pth", ".pt", ".bin", ".gguf"]
            .iter()
            .any(|end| name.ends_with(end))
    });
    files.sort();
    match files.first() {
        Some(first) => format!(
            "; it holds {first}, the layout of another program; needed is {WANTED}, and a single file of a transformer is \
             given as model.transformer (--transformer)"
        ),
        None => String::new(),
    }
}

/// Returns the names of the tensors in a safetensors file.
fn tensors(path: &Path) -> Option<Vec<String>> {
    let mut file = File::open(path).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = Some(u64::from_le_bytes(length)).filter(|length| *length <= MAX_HEADER_BYTES)?;
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).ok()?;
    let header: Map<String, Value> = serde_json::from_slice(&header).ok()?;
    Some(
        header
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| name != "__metadata__")
            .collect(),
    )
}
