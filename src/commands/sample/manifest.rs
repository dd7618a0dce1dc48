//! `clips.json` in a folder of clips: which request made each, so that a clip is not made again.
//!
//! A clip counts as made if its file has the size that it was written with. Entries of clips that are about to be made are removed
//! first: at no time does one stand beside a clip of another request.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use blake3::Hash;
use serde::{Deserialize, Serialize};

use crate::disk::{self, WriteError};

/// Name of the file.
const NAME: &str = "clips.json";

/// Clips that were made in a folder.
#[derive(Debug)]
pub struct Manifest {
    folder: PathBuf,
    clips: BTreeMap<PathBuf, MadeClip>,
}

/// A clip that was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeClip {
    /// Its prompt, for readers.
    pub prompt: String,
    /// Its seed, for readers.
    pub seed: u64,
    /// Hash of its request.
    pub request: String,
    /// Size of its file.
    pub bytes: u64,
}

impl Manifest {
    /// Reads that of a folder. It only saves work, so that a damaged one counts as empty.
    pub fn read(folder: &Path) -> Self {
        let path = folder.join(NAME);
        let clips = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(anyhow::Error::from),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error.into()),
        };
        Self {
            folder: folder.into(),
            clips: clips.unwrap_or_else(|error| {
                log::warn!("{}: {error}; all clips are made again", path.display());
                BTreeMap::new()
            }),
        }
    }

    /// Returns true if the clip `output` is there, made by this request.
    pub fn holds(&self, output: &Path, request: Hash) -> bool {
        let bytes = || Some(std::fs::metadata(self.folder.join(output)).ok()?.len());
        let made = self.clips.get(output);
        made.is_some_and(|made| made.request == request.to_string() && bytes() == Some(made.bytes))
    }

    /// Removes the entries of clips that are about to be made.
    ///
    /// # Errors
    /// Fails where it cannot be written.
    pub fn forget<'o>(&mut self, outputs: impl Iterator<Item = &'o Path>) -> Result<(), WriteError> {
        let before = self.clips.len();
        for output in outputs {
            self.clips.remove(output);
        }
        match self.clips.len() == before {
            true => Ok(()),
            false => self.write(),
        }
    }

    /// Adds a clip that was written.
    ///
    /// # Errors
    /// Fails where it cannot be written.
    pub fn add(&mut self, output: &Path, prompt: (&str, u64), request: Hash) -> Result<(), WriteError> {
        let path = self.folder.join(output);
        let bytes = std::fs::metadata(&path).map_err(WriteError::at(&path))?.len();
        let made = MadeClip {
            prompt: prompt.0.into(),
            seed: prompt.1,
            request: request.to_string(),
            bytes,
        };
        self.clips.insert(output.into(), made);
        self.write()
    }

    fn write(&self) -> Result<(), WriteError> {
        let mut text = serde_json::to_vec_pretty(&self.clips).expect("names and numbers are plain JSON");
        text.push(b'\n');
        disk::write_whole(&self.folder.join(NAME), &text)
    }
}
