//! What was hashed before: a warm start reads neither thousands of clips nor a text encoder of 10 GB again.
//!
//! A file is known by its path, its size and the time of its last change. Clocks have a grain: a change right after
//! hashing might leave all three as they were, so a hash counts only where the change lay some time before it.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use blake3::{Hash, Hasher};
use serde::{Deserialize, Serialize};

use crate::disk;

/// File systems round times to 2 seconds at most, in nanoseconds here.
const GRAIN: u64 = 2_000_000_000;

/// Endings of the files that decide what a part of a checkpoint computes.
const DECISIVE: [&str; 4] = ["json", "safetensors", "model", "txt"];

/// The memory of one cache, in a file of its own.
#[derive(Debug)]
pub struct Known {
    path: PathBuf,
    memo: Mutex<Memo>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Memo {
    files: BTreeMap<String, Seen>,
    parts: BTreeMap<String, Part>,
    #[serde(skip)]
    changed: bool,
}

/// A file as it was hashed; times in nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Seen {
    size: u64,
    modified: u64,
    hashed: u64,
    hash: String,
}

/// A folder of a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Of the names and contents of its files.
    pub fingerprint: String,
    /// The text of its `config.json`.
    pub config: Option<String>,
}

impl Known {
    /// What `path` holds. It only saves work, so one that is damaged is as good as none.
    pub fn open(path: PathBuf) -> Self {
        let memo = match read(&path) {
            Ok(memo) => memo,
            Err(error) => {
                log::warn!("{}: {error}; everything is hashed anew", path.display());
                Memo::default()
            }
        };
        Self {
            path,
            memo: Mutex::new(memo),
        }
    }

    /// The hash of a file's content: from memory where the file has not changed since, else by reading it.
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

    /// The hash of a file that has not changed since it was noted.
    pub fn recall(&self, path: &Path) -> Option<Hash> {
        let (size, modified) = stamp(&std::fs::metadata(path).ok()?)?;
        let memo = self.memo();
        let seen = memo.files.get(&name(path)?)?;
        let settled = seen.modified.saturating_add(GRAIN) < seen.hashed;
        let same = settled && (seen.size, seen.modified) == (size, modified);
        same.then(|| Hash::from_hex(&seen.hash).ok()).flatten()
    }

    /// Notes that a file, which looked like this, was read from `started` on and has this hash.
    pub fn note(&self, path: &Path, metadata: &Metadata, started: SystemTime, hash: Hash) {
        let (Some(name), Some((size, modified)), Some(hashed)) = (name(path), stamp(metadata), nanoseconds(started))
        else {
            return; // hashed again next time
        };
        let hash = hash.to_string();
        let seen = Seen {
            size,
            modified,
            hashed,
            hash,
        };
        let mut memo = self.memo();
        memo.files.insert(name, seen);
        memo.changed = true;
    }

    /// A folder of a checkpoint as it is; where it is gone or empty, as it was, and true.
    pub fn part(&self, folder: &Path) -> io::Result<Option<(Part, bool)>> {
        let name = name(folder).unwrap_or_default();
        let files = decisive(folder)?;
        if files.is_empty() {
            return Ok(self.memo().parts.get(&name).cloned().map(|part| (part, true)));
        }
        if files.iter().any(|file| self.recall(file).is_none()) {
            log::debug!("taking the fingerprint of {}", folder.display());
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

    /// Says whether a folder of a checkpoint was ever hashed.
    pub fn has_seen(&self, folder: &Path) -> bool {
        name(folder).is_some_and(|name| self.memo().parts.contains_key(&name))
    }

    /// The configs of the parts that `directory` once had.
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

    /// Writes what is new, beside what others have written meanwhile.
    pub fn save(&self) -> anyhow::Result<()> {
        let mut ours = self.memo();
        if !ours.changed {
            return Ok(());
        }
        let _alone = self.alone();
        let mut all = read(&self.path).unwrap_or_default();
        all.files.append(&mut ours.files.clone());
        all.parts.append(&mut ours.parts.clone());
        disk::write_whole(&self.path, &serde_json::to_vec(&all)?)?;
        ours.changed = false;
        Ok(())
    }

    /// Keeps other processes from writing between our reading and writing, where the file system knows locks.
    fn alone(&self) -> Option<File> {
        let folder = self.path.parent()?;
        std::fs::create_dir_all(folder).ok()?;
        let folder = File::open(folder).ok()?;
        folder.lock().ok().map(|()| folder)
    }

    fn memo(&self) -> MutexGuard<'_, Memo> {
        // Each change is a single insertion: whoever panicked left it whole.
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

/// Says whether a part's folder is there, with anything in it.
pub fn is_there(folder: &Path) -> io::Result<bool> {
    Ok(!decisive(folder)?.is_empty())
}

/// The files in a part's folder that decide what it computes, by name; none where it is gone.
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

/// What a file is remembered by; None for a name that is no text.
fn name(path: &Path) -> Option<String> {
    std::path::absolute(path).ok()?.to_str().map(String::from)
}

fn stamp(metadata: &Metadata) -> Option<(u64, u64)> {
    Some((metadata.len(), nanoseconds(metadata.modified().ok()?)?))
}

fn nanoseconds(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
}
