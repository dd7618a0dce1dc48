//! Checkpoints of the Hugging Face Hub: the files that are needed, in the Hub's own cache.
//!
//! `HF_HOME` says where the cache is, `HF_TOKEN` who asks, `HF_ENDPOINT` which server answers, and `HF_HUB_OFFLINE=1` that
//! none is asked. What is in the cache is not fetched again; a download that broke off goes on where it stopped.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};

/// Broken downloads are taken up again so many times.
const RETRIES: usize = 5;

/// Folders whose files the models here read.
const PARTS: [&str; 7] = [
    "image_encoder",
    "image_processor",
    "scheduler",
    "text_encoder",
    "tokenizer",
    "transformer",
    "vae",
];

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

fn is_repository(name: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    name.split_once('/')
        .is_some_and(|(owner, name)| plain(owner) && plain(name))
}

fn fetch(name: &str, revision: &str) -> anyhow::Result<PathBuf> {
    let repo = Repo::with_revision(name.into(), RepoType::Model, revision.into());
    if offline() {
        let index = Cache::from_env().repo(repo).get("model_index.json");
        let index = index.context("HF_HUB_OFFLINE is set, and the cache does not have it; fetch it once without")?;
        return snapshot(&index);
    }
    let mut builder = ApiBuilder::from_env()
        .with_retries(RETRIES)
        .with_progress(std::io::stderr().is_terminal());
    if let Some(token) = std::env::var("HF_TOKEN").ok().filter(|token| !token.trim().is_empty()) {
        builder = builder.with_token(Some(token.trim().into()));
    }
    let repo = builder.build()?.repo(repo);
    let files: Vec<String> = repo.info()?.siblings.into_iter().map(|file| file.rfilename).collect();
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

fn offline() -> bool {
    let set = std::env::var("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
    matches!(set.as_str(), "1" | "true" | "yes" | "on")
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
        "image_processor" | "scheduler" | "tokenizer" => true,
        _ => {
            let stem = name
                .strip_suffix(".safetensors")
                .or(name.strip_suffix(".safetensors.index.json"));
            name == "config.json" || stem.is_some_and(|stem| !stem.contains('.'))
        }
    }
}
