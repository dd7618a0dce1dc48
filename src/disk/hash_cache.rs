//! Hashes of files from earlier runs: a warm start need not reread thousands of clips and a text encoder of 10 GB.
//!
//! A file is identified by its path, its size and the time of its last change. Clocks have limited resolution: a change
//! right after hashing might alter none of the three, so a hash counts only if the change was some time before it.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use blake3::{Hash, Hasher};
use serde::{Deserialize, Serialize};

use super::write_whole;

/// Coarsest resolution of file times, 2 seconds, in nanoseconds.
const GRAIN: u64 = 2_000_000_000;

/// Extensions of the files that determine what a part of a checkpoint computes.
const DECISIVE: [&str; 4] = ["json", "safetensors", "model", "txt"];

/// Hashes of one cache, stored in a file.
#[derive(Debug)]
pub struct HashCache {
    path: PathBuf,
    memo: Mutex<Memo>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Memo {
    files: BTreeMap<String, HashedFile>,
    parts: BTreeMap<String, Part>,
    #[serde(skip)]
    changed: bool,
}

/// A hashed file; times in nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct HashedFile {
    size: u64,
    modified: u64,
    hashed: u64,
    hash: String,
}

/// A folder of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Hash of the names and contents of its files.
    pub fingerprint: String,
    /// Text of its `config.json`.
    pub config: Option<String>,
}

impl HashCache {
    /// Loads `path`. The cache only saves work, so a damaged file counts as empty.
    pub fn open(path: PathBuf) -> Self {
        let memo = match read(&path) {
            Ok(memo) => memo,
            Err(error) => {
                log::warn!("{}: {error}; all files will be hashed again", path.display());
                Memo::default()
            }
        };
        Self {
            path,
            memo: Mutex::new(memo),
        }
    }

    /// Returns the hash of a file's content: the cached one if the file is unchanged, else by reading it.
    pub fn hash(&self, path: &Path) -> io::Result<Hash> {
        if let Some(hash) = self.recall(path) {
            return Ok(hash);
        }
        let (started, before) = (SystemTime::now(), std::fs::metadata(path)?);
        let mut hasher = Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        let hash = hasher.finalize();
        self.note(path, &before, started, hash);
        Ok(hash)
    }

    /// Returns the cached hash of an unchanged file.
    pub fn recall(&self, path: &Path) -> Option<Hash> {
        let (size, modified) = stamp(&std::fs::metadata(path).ok()?)?;
        let memo = self.memo();
        let seen = memo.files.get(&name(path)?)?;
        let settled = seen.modified.saturating_add(GRAIN) < seen.hashed;
        let same = settled && (seen.size, seen.modified) == (size, modified);
        same.then(|| Hash::from_hex(&seen.hash).ok()).flatten()
    }

    /// Stores the hash of a file that had this metadata and was read from `started` on.
    pub fn note(&self, path: &Path, metadata: &Metadata, started: SystemTime, hash: Hash) {
        let (Some(name), Some((size, modified)), Some(hashed)) = (name(path), stamp(metadata), nanoseconds(started))
        else {
            return; // the next call hashes it again
        };
        let hash = hash.to_string();
        let seen = HashedFile {
            size,
            modified,
            hashed,
            hash,
        };
        let mut memo = self.memo();
        memo.files.insert(name, seen);
        memo.changed = true;
    }

    /// Returns a part of a checkpoint; if it is missing or empty, its last known state, and true.
    pub fn part(&self, folder: &Path) -> io::Result<Option<(Part, bool)>> {
        let name = name(folder).unwrap_or_default();
        let files = decisive(folder)?;
        if files.is_empty() {
            return Ok(self.memo().parts.get(&name).cloned().map(|part| (part, true)));
        }
        if files.iter().any(|file| self.recall(file).is_none()) {
            log::debug!("hashing the files of {}", folder.display());
        }
        let mut hasher = Hasher::new();
        for file in &files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(self.hash(file)?.as_bytes());
        }
        let part = Part {
            fingerprint: hasher.finalize().to_string(),
            config: std::fs::read_to_string(folder.join("config.json")).ok(),
        };
        let mut memo = self.memo();
        if memo.parts.get(&name) != Some(&part) {
            memo.parts.insert(name, part.clone());
            memo.changed = true;
        }
        Ok(Some((part, false)))
    }

    /// Returns true if a part of a checkpoint was ever hashed.
    pub fn has_seen(&self, folder: &Path) -> bool {
        name(folder).is_some_and(|name| self.memo().parts.contains_key(&name))
    }

    /// Returns the last known configs of the parts of `directory`.
    pub fn configs(&self, directory: &Path) -> BTreeMap<String, String> {
        let (memo, directory) = (self.memo(), std::path::absolute(directory).ok());
        let below = |path: &str| {
            let path = Path::new(path);
            (path.parent() == directory.as_deref()).then(|| path.file_name()?.to_str().map(String::from))?
        };
        let parts = memo.parts.iter();
        parts
            .filter_map(|(path, part)| Some((below(path)?, part.config.clone()?)))
            .collect()
    }

    /// Saves new hashes, merged with those that other processes have written meanwhile.
    pub fn save(&self) -> anyhow::Result<()> {
        let mut ours = self.memo();
        if !ours.changed {
            return Ok(());
        }
        let _alone = self.alone();
        let mut all = read(&self.path).unwrap_or_default();
        all.files.append(&mut ours.files.clone());
        all.parts.append(&mut ours.parts.clone());
        write_whole(&self.path, &serde_json::to_vec(&all)?)?;
        ours.changed = false;
        Ok(())
    }

    /// Locks out other processes between reading and writing, if the file system supports locks.
    fn alone(&self) -> Option<File> {
        let folder = self.path.parent()?;
        std::fs::create_dir_all(folder).ok()?;
        let folder = File::open(folder).ok()?;
        folder.lock().ok().map(|()| folder)
    }

    fn memo(&self) -> MutexGuard<'_, Memo> {
        // Each change is a single insertion, so the map is whole even after a panic.
        self.memo.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn read(path: &Path) -> io::Result<Memo> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Memo::default()),
        Err(error) => Err(error),
    }
}

/// Checks that a part's folder exists and is not empty.
pub fn is_there(folder: &Path) -> io::Result<bool> {
    Ok(!decisive(folder)?.is_empty())
}

/// Returns the files in a part's folder that determine what it computes, by name; none if it is missing.
fn decisive(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if !folder.is_dir() {
        return Ok(files);
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| DECISIVE.contains(&ending)) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Returns the name under which a file is stored; None if it is not valid Unicode.
fn name(path: &Path) -> Option<String> {
    std::path::absolute(path).ok()?.to_str().map(String::from)
}

fn stamp(metadata: &Metadata) -> Option<(u64, u64)> {
    Some((metadata.len(), nanoseconds(metadata.modified().ok()?)?))
}

fn nanoseconds(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
}
