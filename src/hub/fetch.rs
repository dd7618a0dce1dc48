//! Downloads checkpoints and adapters from the Hugging Face Hub: the needed files, in the Hub's own cache. Cached files
//! are not fetched again; an interrupted download resumes.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::environment::Environment;
use super::is_repository;
use super::layout::{self, WeightFile};

/// Number of times an interrupted download is resumed.
const RETRIES: usize = 5;

/// PEFT's name for the settings of an adapter.
const SETTINGS: &str = "adapter_config.json";

/// Folders whose files our models read.
pub const PARTS: [&str; 7] = [
    "image_encoder",
    "image_processor",
    "scheduler",
    "text_encoder",
    "tokenizer",
    "transformer",
    "vae",
];

/// Those of them without weights.
pub const WITHOUT_WEIGHTS: [&str; 3] = ["image_processor", "scheduler", "tokenizer"];

/// Extensions of single files, which no checkpoint repository has in its name.
const FILES: [&str; 6] = [".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt"];

/// Returns the directory of a checkpoint: `model` itself if it is on disk, else the Hub repository of that name,
/// fetched. A `variant` of its weights is fetched if there is one.
///
/// # Errors
/// Fails if it is neither on disk nor a readable repository, with the server's answer.
pub fn locate(model: &str, revision: &str, variant: Option<&str>) -> anyhow::Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.into()); // a file is detected when it is opened
    }
    ensure!(
        !FILES.iter().any(|end| model.to_lowercase().ends_with(end)),
        "{model}: no such file; a model is a diffusers directory or a Hub repository, not a single file"
    );
    ensure!(
        is_repository(model),
        "{model}: no such directory, and not the name of a Hub repository (owner/name)"
    );
    fetch(model, revision, variant).with_context(|| format!("{model}, revision {revision}, on the Hugging Face Hub"))
}

/// Returns what [`locate`] would without fetching anything; None for a repository that is not cached.
///
/// # Errors
/// Same as [`locate`].
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

/// Returns a cached file when the Hub must not be contacted; `offline` names the variable that forbids it.
fn cached(environment: &Environment, offline: &str, repo: Repo, file: &str) -> anyhow::Result<PathBuf> {
    let cache = Cache::new(environment.cache.clone());
    // A commit has no reference of its own in a cache made by huggingface_hub.
    let commit = environment
        .cache
        .join(repo.folder_name())
        .join("snapshots")
        .join(repo.revision())
        .join(file);
    let found = cache.repo(repo).get(file).or_else(|| commit.exists().then_some(commit));
    found.with_context(|| {
        format!(
            "{offline} is set, but the cache in {} does not have it; fetch it once without",
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

/// Returns the names of all files of a repository.
fn names(repo: &ApiRepo) -> anyhow::Result<Vec<String>> {
    Ok(repo.info()?.siblings.into_iter().map(|file| file.rfilename).collect())
}

/// Returns the adapter file that `name` stands for: `owner/name`, or `owner/name/file.safetensors`.
///
/// # Errors
/// Fails without such a repository or file, and for several files none of which has the usual name.
pub fn adapter(name: &str) -> anyhow::Result<PathBuf> {
    let mut slashes = name.match_indices('/');
    let second = slashes.nth(1).map(|(at, _)| at);
    let (repository, file) = match second {
        Some(at) => (&name[..at], Some(&name[at + 1..])),
        None => (name, None),
    };
    ensure!(
        is_repository(repository) && file.is_none_or(|file| file.ends_with(".safetensors")),
        "{name}: no such file, and not the name of a Hub repository (owner/name, or owner/name/file.safetensors)"
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
    // PEFT saves the settings of an adapter next to it.
    let settings = Path::new(file).with_file_name(SETTINGS);
    if let Some(settings) = names.iter().find(|name| Path::new(name) == settings) {
        api.get(settings).with_context(|| settings.clone())?;
    }
    api.get(file).with_context(|| file.to_string())
}

/// Returns the adapter among a repository's cached files.
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

/// Returns the snapshot folder, given a file of the repository's root.
fn snapshot(index: &Path) -> anyhow::Result<PathBuf> {
    Ok(index.parent().context("a file is in a folder")?.into())
}

/// Selects configs, tokenizers and safetensors weights, of each part those that are read: see [`layout::variant`].
///
/// # Errors
/// Fails for a part that has several variants, but not the requested one.
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
