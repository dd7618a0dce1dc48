//! Checkpoints and adapters of the Hugging Face Hub: the files that are needed, in the Hub's own cache. What is there is
//! not fetched again; a download that broke off goes on where it stopped.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::environment::Environment;
use super::is_repository;
use super::layout::{self, WeightFile};

/// Broken downloads are taken up again so many times.
const RETRIES: usize = 5;

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

/// Endings of single files, which no repository of a checkpoint is called.
const FILES: [&str; 6] = [".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt"];

/// The directory of a checkpoint: `model` itself where that is on disk, else what the Hub has under that name. A `variant`
/// of its weights is fetched where there is one.
///
/// # Errors
/// Neither on disk nor a repository that can be read; the server's answer is in the message.
pub fn locate(model: &str, revision: &str, variant: Option<&str>) -> anyhow::Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.into()); // a file is told apart by whoever opens it
    }
    ensure!(
        !FILES.iter().any(|end| model.to_lowercase().ends_with(end)),
        "{model}: no such file; and a model is a diffusers directory or a Hub repository, no single file"
    );
    ensure!(
        is_repository(model),
        "{model}: no such directory, and no name of a Hub repository (owner/name)"
    );
    fetch(model, revision, variant).with_context(|| format!("{model}, revision {revision}, on the Hugging Face Hub"))
}

/// Finds what [`locate`] would without fetching anything: none for a repository of which nothing is here yet.
///
/// # Errors
/// As [`locate`].
pub fn here(model: &str, revision: &str, variant: Option<&str>) -> anyhow::Result<Option<PathBuf>> {
    let environment = Environment::of_process();
    if Path::new(model).exists() || !is_repository(model) || environment.offline.is_some() {
        return locate(model, revision, variant).map(Some);
    }
    let repo = Repo::with_revision(model.into(), RepoType::Model, revision.into());
    let index = Cache::new(environment.cache).repo(repo).get("model_index.json");
    index.map(|index| snapshot(&index)).transpose()
}

fn fetch(name: &str, revision: &str, variant: Option<&str>) -> anyhow::Result<PathBuf> {
    let repo = Repo::with_revision(name.into(), RepoType::Model, revision.into());
    let environment = Environment::of_process();
    if let Some(offline) = environment.offline {
        return snapshot(&cached(&environment, offline, repo, "model_index.json")?);
    }
    let repo = api(environment, repo)?;
    let files = names(&repo)?;
    let needed = needed(&files, variant)?;
    if !needed.contains(&"model_index.json") {
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

/// A file that is in the cache, since the Hub is not to be asked: `offline` is the variable that says so.
fn cached(environment: &Environment, offline: &str, repo: Repo, file: &str) -> anyhow::Result<PathBuf> {
    let cache = Cache::new(environment.cache.clone());
    // A commit has no reference of its own where huggingface_hub made the cache.
    let commit = environment
        .cache
        .join(repo.folder_name())
        .join("snapshots")
        .join(repo.revision())
        .join(file);
    let found = cache.repo(repo).get(file).or_else(|| commit.exists().then_some(commit));
    found.with_context(|| {
        format!(
            "{offline} is set, and the cache in {} does not have it; fetch it once without",
            environment.cache.display()
        )
    })
}

fn api(environment: Environment, repo: Repo) -> anyhow::Result<ApiRepo> {
    environment.warn();
    let token = environment.token_to_read();
    let mut builder = ApiBuilder::from_cache(Cache::new(environment.cache))
        .with_endpoint(environment.endpoint)
        .with_token(token)
        .with_retries(RETRIES)
        .with_progress(environment.progress && std::io::stderr().is_terminal());
    if let Some(origin) = &environment.origin {
        builder = builder.with_user_agent("origin", origin);
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
    let environment = Environment::of_process();
    if let Some(offline) = environment.offline {
        return match file {
            Some(file) => cached(&environment, offline, repo, file),
            None => cached_adapter(&environment, offline, &repo),
        };
    }
    let api = api(environment, repo)?;
    let names = names(&api)?;
    let file = match file {
        Some(file) => file,
        None => layout::adapter(&names).context("the repository")?,
    };
    // The settings of adapters that PEFT saved stand beside them.
    let settings = Path::new(file).with_file_name(SETTINGS);
    if let Some(settings) = names.iter().find(|name| Path::new(name) == settings) {
        api.get(settings).with_context(|| settings.clone())?;
    }
    api.get(file).with_context(|| file.to_string())
}

/// The adapter of a repository among those of its files that are in the cache.
fn cached_adapter(environment: &Environment, offline: &str, repo: &Repo) -> anyhow::Result<PathBuf> {
    let copy = || Repo::new(repo.url(), RepoType::Model);
    let mut found = layout::ADAPTERS
        .iter()
        .map(|name| cached(environment, offline, copy(), name));
    match found.find(Result::is_ok) {
        Some(found) => found,
        None => cached(environment, offline, copy(), layout::ADAPTERS[0]),
    }
}

/// The folder that a file of the repository's root lies in.
fn snapshot(index: &Path) -> anyhow::Result<PathBuf> {
    Ok(index.parent().context("a file lies in a folder")?.into())
}

/// Configs, tokenizers and weights in safetensors, of each part those that are read: see [`layout::variant`].
///
/// # Errors
/// A part with several variants and none that is wanted.
fn needed<'a>(files: &'a [String], variant: Option<&str>) -> anyhow::Result<Vec<&'a str>> {
    let mut needed: Vec<&str> = files
        .iter()
        .map(String::as_str)
        .filter(|file| *file == "model_index.json")
        .collect();
    for part in PARTS {
        let inside = || {
            let below = files
                .iter()
                .filter_map(move |file| file.strip_prefix(part)?.strip_prefix('/'));
            below.filter(|name| !name.contains('/'))
        };
        let chosen = layout::variant(inside(), variant).with_context(|| format!("{part}/"))?;
        let is_needed = |name: &str| match part {
            part if WITHOUT_WEIGHTS.contains(&part) => true,
            _ => name == "config.json" || WeightFile::of(name).is_some_and(|file| file.variant == chosen),
        };
        needed.extend(files.iter().map(String::as_str).filter(|file| {
            let name = file.strip_prefix(part).and_then(|rest| rest.strip_prefix('/'));
            name.is_some_and(|name| !name.contains('/') && is_needed(name))
        }));
    }
    Ok(needed)
}
