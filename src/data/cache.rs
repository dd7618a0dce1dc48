//! What is kept of each clip and caption between runs: posteriors of latents, and text embeddings.
//!
//! ```text
//! clips/<key>.safetensors      mean, logvar (C, f, h, w) f32; image to video: what the family keeps of the first frame
//! captions/<key>.safetensors   embeds (L, D) and, where the family masks padding, mask (L), in the model's dtype
//! known.json                   hashes of files that have not changed since, and what parts of models were
//! ```
//!
//! A [`Key`] is a hash of content: the same clip, cut and coder have one record, wherever the files lie and whichever
//! run asks. Records are written whole or not at all, so several processes may fill one cache, and one that was
//! interrupted goes on. Each carries a digest, which is held against its content whenever it is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow, ensure};
use blake3::{Hash, Hasher};
use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::disk::{self, space, space::NoRoom};
use crate::nn::WeightFolder;

mod encoded;
mod key;
mod known;
mod record;

pub use encoded::{Clip, Encoded, Encoding, Listed};
pub use key::{CaptionCoder, ClipCoder, Key, rng};
pub use record::Form;

use known::Known;
use record::Fault;

/// `precompute:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where latents and text embeddings are kept; null: `precomputed` in the output directory.
    pub dir: Option<PathBuf>,
    /// `sample` draws a latent anew each epoch, `mode` takes the mean.
    pub latents: Latents,
    /// Encode large frames in overlapping tiles: less memory, nearly the same latents.
    pub vae_tiling: bool,
    /// Encode the clips of a batch one by one: less memory, the same latents.
    pub vae_slicing: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: None,
            latents: Latents::Sample,
            vae_tiling: true,
            vae_slicing: true,
        }
    }
}

impl Config {
    /// The cache of a run that writes to `output_dir`.
    pub fn folder(&self, output_dir: &Path) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| output_dir.join("precomputed"))
    }
}

/// What a step trains on, given a clip's posterior.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Latents {
    Sample,
    Mode,
}

/// How large a family's encodings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    pub latent_channels: usize,
    /// Frames a latent frame stands for; the first frame stands alone (a causal VAE).
    pub temporal_compression: usize,
    pub spatial_compression: usize,
    pub text_tokens: usize,
    pub text_width: usize,
}

impl Footprint {
    /// Bytes of one clip's posterior: mean and log-variance, f32.
    pub fn latent_bytes(&self, num_frames: usize, height: usize, width: usize) -> u64 {
        let frames = num_frames.saturating_sub(1).div_ceil(self.temporal_compression.max(1)) + 1;
        let scale = self.spatial_compression.max(1);
        let (rows, columns) = (height.div_ceil(scale), width.div_ceil(scale));
        product([2, self.latent_channels, frames, rows, columns, size_of::<f32>()])
    }

    /// Bytes of one caption's embedding at `bytes_per_value`.
    pub fn caption_bytes(&self, bytes_per_value: usize) -> u64 {
        product([self.text_tokens, self.text_width, bytes_per_value])
    }
}

/// The sizes are those of a checkpoint's configs, whatever these say.
fn product(sizes: impl IntoIterator<Item = usize>) -> u64 {
    sizes.into_iter().fold(1, |all, size| all.saturating_mul(size as u64))
}

/// A folder of records.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    known: Known,
}

impl Cache {
    /// The cache in `dir`, which need not be there yet.
    pub fn open(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            known: Known::open(dir.join("known.json")),
        }
    }

    /// Takes away what killed processes left half-written.
    pub fn sweep(&self) {
        for folder in [self.dir.clone(), self.dir.join("clips"), self.dir.join("captions")] {
            disk::sweep(&folder);
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a record lies, or would.
    pub fn path(&self, key: &Key) -> PathBuf {
        key.path(&self.dir)
    }

    /// The hash of a file's content, read only if the file has changed since it was last asked for.
    pub fn hash(&self, path: &Path) -> std::io::Result<Hash> {
        self.known.hash(path)
    }

    /// What the parts of the checkpoint in `directory` compute, as a hash of their files. A part that is gone counts as
    /// what it was when it was last seen, and the log says so. A variant of the weights that is wanted counts, too: other
    /// files of the same folder are read.
    ///
    /// # Errors
    /// A part that is not there and never was; files that cannot be read.
    pub fn fingerprint(&self, directory: &WeightFolder, parts: &[&str]) -> anyhow::Result<Hash> {
        let mut hasher = Hasher::new();
        if let Some(variant) = directory.variant() {
            hasher.update(format!("variant {variant}\n").as_bytes());
        }
        for name in parts {
            let folder = directory.join(name);
            let part = self.known.part(&folder).with_context(|| folder.display().to_string())?;
            let (part, gone) = part.with_context(|| self.unseen(directory, name))?;
            if gone {
                log::info!(
                    "{} is gone; the cache goes by what it was when last seen",
                    folder.display()
                );
            }
            hasher.update(format!("{name} {}\n", part.fingerprint).as_bytes());
        }
        Ok(hasher.finalize())
    }

    /// Says whether all these parts of the checkpoint in `directory` are there. One that is gone must have been seen.
    ///
    /// # Errors
    /// A part that is not there and never was.
    pub fn has_parts(&self, directory: &Path, parts: &[&str]) -> anyhow::Result<bool> {
        let mut all = true;
        for name in parts {
            let folder = directory.join(name);
            if !known::is_there(&folder).with_context(|| folder.display().to_string())? {
                ensure!(self.known.has_seen(&folder), self.unseen(directory, name));
                all = false;
            }
        }
        Ok(all)
    }

    /// The words for a part that is not there and never was.
    fn unseen(&self, directory: &Path, part: &str) -> String {
        format!(
            "{}: the checkpoint has no {part}/, and the cache in {} has never seen it; download it in full",
            directory.display(),
            self.dir.display()
        )
    }

    /// The configs of the parts that the checkpoint in `directory` has or had.
    pub fn remembered(&self, directory: &Path) -> BTreeMap<String, String> {
        self.known.configs(directory)
    }

    /// Whether the record is there and whole. One that has not changed since it was last read is not read again; one
    /// that is damaged is told and counts as missing.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub fn holds(&self, key: &Key, form: &Form) -> anyhow::Result<bool> {
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
            (Err(Fault::Missing), _) | (Ok(_), Err(_)) => Ok(false),
            (Err(fault @ Fault::Damaged(_)), _) => {
                log::warn!("{} {fault}; it is made anew", path.display());
                Ok(false)
            }
            (Err(fault @ Fault::Unreadable(_)), _) => Err(anyhow!("{} {fault}", path.display())),
        }
    }

    /// Whether a record that was missing has come from another process meanwhile.
    pub fn has_come(&self, key: &Key, form: &Form) -> bool {
        let path = self.path(key);
        path.exists() && record::read(&path, form).is_ok()
    }

    /// A record's tensors, in the order of its form.
    ///
    /// # Errors
    /// A record that is missing or damaged. The latter is removed, so that the next run makes it anew.
    pub fn read(&self, key: &Key, form: &Form) -> anyhow::Result<Vec<Tensor>> {
        let path = self.path(key);
        record::read(&path, form).map(|(tensors, _)| tensors).map_err(|fault| {
            if let Fault::Damaged(_) = fault {
                // Where that fails it is found again.
                let _ = std::fs::remove_file(&path);
            }
            anyhow!("{} {fault}; start again, and it is made anew", path.display())
        })
    }

    /// Writes a record whole: tensors in the order of the form, and notes for people.
    ///
    /// # Errors
    /// No room, no permission.
    pub fn write(&self, key: &Key, form: &Form, tensors: &[Tensor], notes: &[(&str, String)]) -> anyhow::Result<()> {
        let path = self.path(key);
        let digest = record::write(&path, form, tensors, notes)?;
        if let Ok(metadata) = std::fs::metadata(&path) {
            self.known.note(&path, &metadata, SystemTime::now(), digest);
        }
        Ok(())
    }

    /// Whether the records of these forms can be written, too.
    ///
    /// # Errors
    /// How much they take, and how much is free.
    pub fn ensure_room<'f>(&self, forms: impl Iterator<Item = &'f Form>) -> Result<(), NoRoom> {
        let needed = space::taken(forms.map(|form| form.bytes() + record::USUAL_HEADER));
        space::ensure(&self.dir, needed, || "what is to be encoded".into())
    }

    /// Keeps what was hashed for the next run. Where that fails, it is only hashed again.
    pub fn save(&self) {
        if let Err(error) = self.known.save() {
            log::warn!("{error:#} (everything is hashed anew next time)");
        }
    }
}
