//! Checkpoints and adapters of the Hugging Face Hub: the files that are needed, in the Hub's own cache. What is there is
//! not fetched again; a download that broke off goes on where it stopped.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::{is_offline, is_repository, token};

/// Broken downloads are taken up again so many times.
const RETRIES: usize = 5;

/// As diffusers calls adapters of a pipeline.
const ADAPTER: &str = "pytorch_lora_weights.safetensors";

/// As PEFT calls the settings beside adapters.
const SETTINGS: &str = "adapter_config.json";

/// Folders whose files the models here read.
pub const PARTS: [&str; 7] = [
    "image_encoder",
    "image_processor",
    "scheduler",
    "text_encoder",
    "tokenizer",
    "transformer",
    "vae",
];

/// The folders among them without weights.
pub const WITHOUT_WEIGHTS: [&str; 3] = ["image_processor", "scheduler", "tokenizer"];

/// The directory of a checkpoint: `model` itself where that is one, else what the Hub has under that name.
///
/// # Errors
/// Neither a directory nor a repository that can be read; the server's answer is in the message.
pub fn locate(model: &str, revision: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.into());
    }
    ensure!(
        is_repository(model),
        "{model}: no such directory, and no name of a Hub repository (owner/name)"
    );
    fetch(model, revision).with_context(|| format!("{model}, revision {revision}, on the Hugging Face Hub"))
}

/// Finds what [`locate`] would without fetching anything: none for a repository of which nothing is here yet.
///
/// # Errors
/// As [`locate`].
pub fn here(model: &str, revision: &str) -> anyhow::Result<Option<PathBuf>> {
    if Path::new(model).is_dir() || !is_repository(model) || is_offline() {
        return locate(model, revision).map(Some);
    }
    let repo = Repo::with_revision(model.into(), RepoType::Model, revision.into());
    let index = Cache::from_env().repo(repo).get("model_index.json");
    index.map(|index| snapshot(&index)).transpose()
}

fn fetch(name: &str, revision: &str) -> anyhow::Result<PathBuf> {
    let repo = Repo::with_revision(name.into(), RepoType::Model, revision.into());
    if is_offline() {
        let index = Cache::from_env().repo(repo).get("model_index.json");
        let index = index.context("HF_HUB_OFFLINE is set, and the cache does not have it; fetch it once without")?;
        return snapshot(&index);
    }
    let repo = api(repo)?;
    let files = names(&repo)?;
    let needed: Vec<&String> = files.iter().filter(|file| is_needed(file)).collect();
    if !needed.iter().any(|file| *file == "model_index.json") {
        bail!("the repository has no model_index.json; a checkpoint in the diffusers layout is needed");
    }
    let mut index = None;
    for (n, file) in needed.iter().enumerate() {
        log::debug!("{} of {}: {file}", n + 1, needed.len());
        let path = repo.get(file).with_context(|| file.to_string())?;
        if *file == "model_index.json" {
            index = Some(path);
        }
    }
    snapshot(&index.context("model_index.json was not fetched")?)
}

fn api(repo: Repo) -> anyhow::Result<ApiRepo> {
    let mut builder = ApiBuilder::from_env()
        .with_retries(RETRIES)
        .with_progress(std::io::stderr().is_terminal());
    if let Some(token) = token() {
        builder = builder.with_token(Some(token));
    }
    Ok(builder.build()?.repo(repo))
}

/// Names of all files of a repository.
fn names(repo: &ApiRepo) -> anyhow::Result<Vec<String>> {
    Ok(repo.info()?.siblings.into_iter().map(|file| file.rfilename).collect())
}

/// The adapter file that `name` stands for: `owner/name`, or `owner/name/file.safetensors`.
///
/// # Errors
/// No such repository or file; a repository of several files of which none has the usual name.
pub fn adapter(name: &str) -> anyhow::Result<PathBuf> {
    let mut slashes = name.match_indices('/');
    let second = slashes.nth(1).map(|(at, _)| at);
    let (repository, file) = match second {
        Some(at) => (&name[..at], Some(&name[at + 1..])),
        None => (name, None),
    };
    ensure!(
        is_repository(repository) && file.is_none_or(|file| file.ends_with(".safetensors")),
        "{name}: no such file, and no name of a Hub repository (owner/name, or owner/name/file.safetensors)"
    );
    fetch_adapter(repository, file).with_context(|| format!("{name}: no such file, and on the Hugging Face Hub"))
}

fn fetch_adapter(repository: &str, file: Option<&str>) -> anyhow::Result<PathBuf> {
    let repo = Repo::new(repository.into(), RepoType::Model);
    if is_offline() {
        let cached = Cache::from_env().repo(repo).get(file.unwrap_or(ADAPTER));
        return cached.context("HF_HUB_OFFLINE is set, and the cache does not have it; fetch it once without");
    }
    let api = api(repo)?;
    let names = names(&api)?;
    let file = match file {
        Some(file) => file,
        None => only_adapter(&names)?,
    };
    // The settings of adapters that PEFT saved stand beside them.
    let settings = Path::new(file).with_file_name(SETTINGS);
    if let Some(settings) = names.iter().find(|name| Path::new(name) == settings) {
        api.get(settings).with_context(|| settings.clone())?;
    }
    api.get(file).with_context(|| file.to_string())
}

/// The one that diffusers would load, or the only one that there is.
fn only_adapter(names: &[String]) -> anyhow::Result<&str> {
    let files: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    match files.as_slice() {
        files if files.contains(&ADAPTER) => Ok(ADAPTER),
        [only] => Ok(only),
        [] => bail!("the repository has no safetensors file"),
        several => bail!(
            "the repository has several files; name one of them after it: {}",
            several.iter().take(10).copied().collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The folder that a file of the repository's root lies in.
fn snapshot(index: &Path) -> anyhow::Result<PathBuf> {
    Ok(index.parent().context("a file lies in a folder")?.into())
}

/// Configs, tokenizers and weights in safetensors, without the variants (`model.fp16.safetensors`) beside them.
fn is_needed(file: &str) -> bool {
    if file == "model_index.json" {
        return true;
    }
    let Some((part, name)) = file.split_once('/') else {
        return false;
    };
    if !PARTS.contains(&part) || name.contains('/') {
        return false;
    }
    match part {
        part if WITHOUT_WEIGHTS.contains(&part) => true,
        _ => {
            let stem = name
                .strip_suffix(".safetensors")
                .or(name.strip_suffix(".safetensors.index.json"));
            name == "config.json" || stem.is_some_and(|stem| !stem.contains('.'))
        }
    }
}
