//! Folders and configs of a diffusers directory's parts.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};

use crate::diffusers_config::{self as config, Config};
use crate::nn::WeightFolder;

/// Texts of the parts' `config.json`, by the part's name, which replace parts deleted after encoding.
pub type CachedConfigs = BTreeMap<String, String>;

/// A checkpoint's directory, with the configs of parts that are no longer there.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointDir<'a> {
    /// The directory.
    pub folder: &'a WeightFolder,
    /// Configs of deleted parts.
    pub cached: &'a CachedConfigs,
}

impl CheckpointDir<'_> {
    /// Reads the config of a part.
    ///
    /// # Errors
    /// Fails for a part that is neither there nor cached, and an invalid config.
    pub fn config<C: Config>(&self, name: &str) -> anyhow::Result<C> {
        self.config_by(name, C::parse)
    }

    /// Same as [`config`](Self::config), for a config with a parser of its own.
    pub fn config_by<C>(&self, name: &str, parse: impl Fn(&str) -> anyhow::Result<C>) -> anyhow::Result<C> {
        let there = self.folder.part(name).join("config.json").exists();
        if let Some(text) = self.cached.get(name).filter(|_| !there) {
            return parse(text).with_context(|| format!("{name}/config.json in the cache"));
        }
        let path = part(self.folder, name)?.join("config.json");
        let read = config::text(&path).and_then(|text| parse(&text));
        read.with_context(|| path.display().to_string())
    }
}

/// Returns a part of the checkpoint in `directory`, which must exist.
///
/// # Errors
/// Fails without such a folder.
pub fn part(directory: &WeightFolder, name: &str) -> anyhow::Result<WeightFolder> {
    let folder = directory.part(name);
    ensure!(
        folder.is_dir(),
        "{}: the checkpoint has no {name}/, which this step needs; download it in full",
        directory.display()
    );
    Ok(folder)
}
