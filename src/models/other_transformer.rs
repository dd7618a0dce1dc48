//! Another transformer than the checkpoint's own, `model.transformer`: a folder as diffusers has it, a single file of
//! safetensors, or a GGUF file.
//!
//! A file has no config: that of the checkpoint's `transformer/` says what the model is. Its names are the makers' own,
//! which ComfyUI has too, or diffusers'. What does not match is told when the weights are read.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{bail, ensure};

use super::family::FamilySpec;
use super::registry;
use crate::lora::format;
use crate::lora::names::{Located, Names};
use crate::nn::WeightFolder;
use crate::nn::gguf::{GgufFile, Value};
use crate::nn::named_file::{NamedFile, NamedTensor, Spelling};
use crate::nn::tensor_file::TensorFile;

/// Starts of all names of a transformer in files that may hold other models as well.
const PREFIXES: [&str; 3] = ["model.diffusion_model.", "diffusion_model.", "model.model."];

/// Key of a GGUF file's architecture.
const ARCHITECTURE: &str = "general.architecture";

/// Returns the checkpoint in `folder` with the transformer at `path` in place of its own.
///
/// # Errors
/// Fails for a path without a file or folder, a file that cannot be read, and a transformer of another family.
pub fn replace_transformer(folder: WeightFolder, path: &Path) -> anyhow::Result<WeightFolder> {
    let spec = registry::of_checkpoint(&folder)?;
    let part = if path.is_dir() {
        of_folder(spec, path, folder.variant())?
    } else {
        ensure!(
            path.exists(),
            "{}: no such file or folder; a transformer is a GGUF or safetensors file, or a folder with config.json and \
             weights",
            path.display()
        );
        let own = folder.part("transformer");
        ensure!(
            own.join("config.json").is_file(),
            "{}: does not exist; it says what the transformer in {} is",
            own.join("config.json").display(),
            path.display()
        );
        own.with_file(of_file(spec, path)?)
    };
    log::info!("the transformer is {}", path.display());
    Ok(folder.with_part("transformer", part))
}

fn of_folder(spec: &FamilySpec, path: &Path, variant: Option<&str>) -> anyhow::Result<WeightFolder> {
    ensure!(
        !path.join("model_index.json").exists(),
        "{}: is a whole checkpoint; give its folder transformer",
        path.display()
    );
    ensure!(
        path.join("config.json").is_file(),
        "{}: has no config.json; a folder of a transformer has one, and its weights in safetensors",
        path.display()
    );
    let other = registry::of_transformer(path)?;
    ensure!(
        other.name == spec.name,
        "{}: is a transformer of {}, and the checkpoint one of {}",
        path.display(),
        other.title,
        spec.title
    );
    Ok(WeightFolder::new(path, variant))
}

fn of_file(spec: &FamilySpec, path: &Path) -> anyhow::Result<NamedFile> {
    let file = TensorFile::open(path)?;
    if let TensorFile::Gguf(file) = &file {
        check_architecture(spec, file)?;
    }
    named(spec, path, &file.names())
}

fn check_architecture(spec: &FamilySpec, file: &GgufFile) -> anyhow::Result<()> {
    let path = file.path().display();
    let Some(wanted) = spec.gguf.map(|gguf| gguf.architecture) else {
        bail!(
            "{path}: no program has GGUF files of {}, and none are read; give safetensors",
            spec.title
        );
    };
    match file.header().metadata.get(ARCHITECTURE) {
        Some(Value::Text(found)) if found == wanted => Ok(()),
        Some(Value::Text(found)) => bail!(
            "{path}: {ARCHITECTURE} is '{}', and the checkpoint is of {}, whose files have '{wanted}'",
            found.escape_debug(),
            spec.title
        ),
        _ => bail!("{path}: has no {ARCHITECTURE}; files of {} have '{wanted}'", spec.title),
    }
}

/// Finds the model's names for the names in a file.
fn named(spec: &FamilySpec, path: &Path, in_file: &[String]) -> anyhow::Result<NamedFile> {
    let shown = path.display();
    let prefix = PREFIXES
        .into_iter()
        .find(|prefix| in_file.iter().any(|name| name.starts_with(prefix)))
        .unwrap_or("");
    let rest: Vec<&str> = in_file.iter().filter_map(|name| name.strip_prefix(prefix)).collect();
    ensure_family(spec, path, &rest)?;
    if rest.len() < in_file.len() {
        let others = in_file.iter().filter(|name| !name.starts_with(prefix));
        let first = others.map(String::as_str).next().unwrap_or_default();
        log::info!(
            "{shown}: {} tensors belong to other models and are left out, first {first}",
            in_file.len() - rest.len()
        );
    }
    let (mut names, mut original) = (BTreeMap::new(), false);
    for name in rest {
        let mut found = spec.names.tensors(name);
        if found.is_empty() {
            found.push(Located::whole(name));
        }
        for Located { name: ours, rows } in found {
            original |= ours != name;
            let tensor = NamedTensor {
                name: format!("{prefix}{name}"),
                rows,
            };
            let twice = names.insert(ours.clone(), tensor);
            if let Some(other) = twice {
                bail!("{shown}: {} and {prefix}{name} are both {ours}", other.name);
            }
        }
    }
    let spelling: &'static dyn Spelling = spec.names;
    Ok(NamedFile {
        path: path.into(),
        names,
        prefix,
        spelling: original.then_some(spelling),
    })
}

/// Checks that no other family has more of these names.
fn ensure_family(spec: &FamilySpec, path: &Path, names: &[&str]) -> anyhow::Result<()> {
    let known = |family: &Names| names.iter().filter(|name| !family.tensors(name).is_empty()).count();
    let ours = known(spec.names);
    let (path, title) = (path.display(), spec.title);
    let other = registry::FAMILIES.iter().max_by_key(|other| known(other.names));
    if let Some(other) = other.filter(|other| known(other.names) > ours) {
        bail!(
            "{path}: is a transformer of {}, and the checkpoint is of {title}",
            other.title
        );
    }
    let adapters = names.iter().filter(|name| format::name(name).is_ok()).count();
    ensure!(
        adapters * 2 <= names.len() || names.is_empty(),
        "{path}: is an adapter file, which --lora and lora.init take"
    );
    ensure!(
        !names.iter().any(|name| name.contains("query_key_value")),
        "{path}: has query, key and value in one matrix, as SAT does, which is not read; load it in diffusers and \
         save_pretrained its transformer"
    );
    let first = names.first().copied().unwrap_or("none");
    ensure!(
        ours > 0,
        "{path}: none of its {} tensors has a name that {title} has; the first is {first}",
        names.len()
    );
    Ok(())
}
