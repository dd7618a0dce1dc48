//! The cache of encoded clips and captions: posteriors of latents, and text embeddings.
//!
//! ```text
//! clips/<key>.safetensors      mean, logvar (C, f, h, w) f32; image to video: the family's first-frame tensors
//! captions/<key>.safetensors   embeds (L, D) and, where the family masks padding, mask (L), in the model's dtype
//! known.json                   hashes of unchanged files, and fingerprints of model parts
//! ```
//!
//! A [`Key`] is a hash of content: the same clip, selection and encoder have one record, regardless of paths and runs.
//! Records are written whole or not at all, so several processes may fill one cache, and an interrupted one resumes.
//! Each carries a digest, which is verified at every read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow, ensure};
use blake3::{Hash, Hasher};
use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::disk::hash_cache::{self, HashCache};
use crate::disk::{self, space, space::NotEnoughSpace};
use crate::nn::WeightFolder;
use crate::nn::vae_memory::{VaeMemory, VaeTiling};
use crate::run_dir::RunDir;

mod encoded;
mod key;
mod record;
mod text_id;

pub use encoded::{Clip, Encoded, Encoding, SampleListing};
pub use key::{EncodedTiles, EncoderId, Key, TextEncoderId, rng};
pub use record::RecordSchema;
pub use text_id::{Picture, TextId};

use record::RecordError;

/// `precompute:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder of the latents and text embeddings; null: `precomputed` in the output directory.
    pub dir: Option<PathBuf>,
    /// `sample` draws a new latent each epoch, `mode` takes the mean.
    pub latents: Latents,
    /// Encode large clips in overlapping tiles, and decode those of validation videos so: less memory, nearly the same
    /// latents. `auto`: where whole clips do not fit in memory.
    pub vae_tiling: VaeTiling,
    /// Encode the clips of a batch one by one: less memory, the same latents.
    pub vae_slicing: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: None,
            latents: Latents::Sample,
            vae_tiling: VaeTiling::AUTO,
            vae_slicing: true,
        }
    }
}

impl Config {
    /// Folder of the cache of a run.
    pub fn folder(&self, run: &RunDir) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| run.cache())
    }

    /// Savings of memory in the autoencoder, given the free bytes before it loads.
    pub fn vae_memory(&self, free: Option<u64>) -> VaeMemory {
        VaeMemory {
            tiling: self.vae_tiling,
            slicing: self.vae_slicing,
            free,
        }
    }
}

/// Latents to train on, given a clip's posterior.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Latents {
    /// A draw from the posterior, new in each epoch.
    Sample,
    /// The posterior's mean.
    Mode,
}

/// A folder of records.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    known: HashCache,
}

impl Cache {
    /// Opens the cache in `dir`, which need not exist yet.
    pub fn open(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            known: HashCache::open(dir.join("known.json")),
        }
    }

    /// Removes the unfinished files of killed processes.
    pub fn sweep(&self) {
        for folder in [self.dir.clone(), self.dir.join("clips"), self.dir.join("captions")] {
            disk::sweep(&folder);
        }
    }

    /// Folder of the cache.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of a record, whether it exists or not.
    pub fn path(&self, key: &Key) -> PathBuf {
        key.path(&self.dir)
    }

    /// Returns the hash of a file's content, reading it only if it has changed since the last call.
    pub fn hash(&self, path: &Path) -> std::io::Result<Hash> {
        self.known.hash(path)
    }

    /// Returns a hash of the files of the checkpoint's parts in `directory`. For a missing part, the last known hash is
    /// used, with a warning; for one that is a file elsewhere, that and the config count. The variant of the weights counts as well, because it selects other files of the same
    /// folder.
    ///
    /// # Errors
    /// Fails for a missing part that was never seen, and for files that cannot be read.
    pub fn fingerprint(&self, directory: &WeightFolder, parts: &[&str]) -> anyhow::Result<Hash> {
        let mut hasher = Hasher::new();
        if let Some(variant) = directory.variant() {
            hasher.update(format!("variant {variant}\n").as_bytes());
        }
        for name in parts {
            let folder = directory.part(name);
            if let Some(file) = folder.file() {
                let hash = |path: &Path| self.hash(path).with_context(|| path.display().to_string());
                let (config, weights) = (hash(&folder.join("config.json"))?, hash(&file.path)?);
                hasher.update(format!("{name} config {config} file {weights}\n").as_bytes());
                continue;
            }
            let part = self.known.part(&folder).with_context(|| folder.display().to_string())?;
            let (part, gone) = part.with_context(|| self.unseen(directory, name))?;
            if gone {
                log::info!("{} is missing; the cache uses its last known content", folder.display());
            }
            hasher.update(format!("{name} {}\n", part.fingerprint).as_bytes());
        }
        Ok(hasher.finalize())
    }

    /// Returns true if all these parts of the checkpoint in `directory` exist. A missing one must have been seen
    /// before.
    ///
    /// # Errors
    /// Fails for a missing part that was never seen.
    pub fn has_parts(&self, directory: &Path, parts: &[&str]) -> anyhow::Result<bool> {
        let mut all = true;
        for name in parts {
            let folder = directory.join(name);
            if !hash_cache::is_there(&folder).with_context(|| folder.display().to_string())? {
                ensure!(self.known.has_seen(&folder), self.unseen(directory, name));
                all = false;
            }
        }
        Ok(all)
    }

    /// Message for a missing part that was never seen.
    fn unseen(&self, directory: &Path, part: &str) -> String {
        format!(
            "{}: the checkpoint has no {part}/, and the cache in {} has never seen it; download it in full",
            directory.display(),
            self.dir.display()
        )
    }

    /// Returns the configs of the checkpoint's present or remembered parts in `directory`.
    pub fn remembered(&self, directory: &Path) -> BTreeMap<String, String> {
        self.known.configs(directory)
    }

    /// Returns true if the record exists and is whole. A record unchanged since its last read is not read again; a
    /// damaged one is logged and counts as missing.
    ///
    /// # Errors
    /// Fails for a file that exists but cannot be read.
    pub fn holds(&self, key: &Key, form: &RecordSchema) -> anyhow::Result<bool> {
        let path = self.path(key);
        if self.known.recall(&path).is_some() {
            return Ok(true);
        }
        let (started, metadata) = (SystemTime::now(), std::fs::metadata(&path));
        match (record::read(&path, form), metadata) {
            (Ok((_, digest)), Ok(metadata)) => {
                self.known.note(&path, &metadata, started, digest);
                Ok(true)
            }
            (Err(RecordError::Missing), _) | (Ok(_), Err(_)) => Ok(false),
            (Err(fault @ RecordError::Damaged(_)), _) => {
                log::warn!("{} {fault}; it will be encoded again", path.display());
                Ok(false)
            }
            (Err(fault @ RecordError::Unreadable(_)), _) => Err(anyhow!("{} {fault}", path.display())),
        }
    }

    /// Checks whether another process has written a missing record meanwhile.
    pub fn has_come(&self, key: &Key, form: &RecordSchema) -> bool {
        let path = self.path(key);
        path.exists() && record::read(&path, form).is_ok()
    }

    /// Reads a record's tensors, in the order of its schema.
    ///
    /// # Errors
    /// Fails for a record that is missing or damaged. A damaged one is removed, so that the next run encodes it again.
    pub fn read(&self, key: &Key, form: &RecordSchema) -> anyhow::Result<Vec<Tensor>> {
        let path = self.path(key);
        record::read(&path, form).map(|(tensors, _)| tensors).map_err(|fault| {
            if let RecordError::Damaged(_) = fault {
                // If removal fails, the next run finds the damage again.
                let _ = std::fs::remove_file(&path);
            }
            anyhow!("{} {fault}; start again to encode it anew", path.display())
        })
    }

    /// Writes a record atomically: tensors in the order of the schema, and notes for readers.
    ///
    /// # Errors
    /// Fails without space or permission.
    pub fn write(
        &self,
        key: &Key,
        form: &RecordSchema,
        tensors: &[Tensor],
        notes: &[(&str, String)],
    ) -> anyhow::Result<()> {
        let path = self.path(key);
        let digest = record::write(&path, form, tensors, notes)?;
        if let Ok(metadata) = std::fs::metadata(&path) {
            self.known.note(&path, &metadata, SystemTime::now(), digest);
        }
        Ok(())
    }

    /// Checks that there is space for the missing records of these schemas.
    ///
    /// # Errors
    /// Reports the needed and the free bytes.
    pub fn ensure_room<'f>(&self, forms: impl Iterator<Item = &'f RecordSchema>) -> Result<(), NotEnoughSpace> {
        let needed = space::taken(forms.map(|form| form.bytes() + record::USUAL_HEADER));
        space::ensure(&self.dir, needed, || "what is to be encoded".into())
    }

    /// Saves the hashes for the next run. On failure, they are only computed again.
    pub fn save(&self) {
        if let Err(error) = self.known.save() {
            log::warn!("{error:#} (all files will be hashed again next time)");
        }
    }
}
