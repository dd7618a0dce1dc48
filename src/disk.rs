//! Atomic writes of files and folders: written next to the destination, synced, renamed.
//!
//! An unfinished entry is hidden next to its destination, named `.vtrain-` and some letters, and locked by its writer.
//! A killed process leaves its entries unlocked; [`sweep`] removes those.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

mod error;
pub mod hash_cache;
mod journal;
mod retry;
pub mod space;
mod unicode_names;
pub mod writable;

pub use error::WriteError;
pub use journal::Journal;
pub use retry::with_retries;
pub use unicode_names::{composed, spelled};

/// Prefix of the names of unfinished entries.
const PREFIX: &str = ".vtrain-";

/// Prefix of a folder that is moved aside while another takes its place: it is never swept.
const ASIDE: &str = "replaced-";

/// A temporary file next to its destination; without [`keep`](Self::keep) it is removed.
pub struct TempFile {
    destination: PathBuf,
    hidden: NamedTempFile,
}

impl TempFile {
    /// Creates the file, and its folder.
    pub fn of(destination: &Path) -> Result<Self, WriteError> {
        let folder = folder_of(destination);
        fs::create_dir_all(folder).map_err(WriteError::at(folder))?;
        let hidden = unswept(|| {
            let hidden = Builder::new().prefix(PREFIX).make_in(folder, new_file)?;
            lock(hidden.as_file());
            Ok((is_there(hidden.path()), hidden))
        });
        Ok(Self {
            destination: destination.into(),
            hidden: hidden.map_err(WriteError::at(destination))?,
        })
    }

    /// Returns the temporary path: for libraries that write by name.
    pub fn path(&self) -> &Path {
        self.hidden.path()
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        // Uses the file itself: tempfile's own errors drop the error number.
        let file = self.hidden.as_file_mut();
        file.write_all(bytes).map_err(WriteError::at(&self.destination))
    }

    /// Writes bytes from this place on.
    pub fn write_at(&mut self, place: u64, bytes: &[u8]) -> Result<(), WriteError> {
        let file = self.hidden.as_file_mut();
        let written = file.seek(SeekFrom::Start(place)).and_then(|_| file.write_all(bytes));
        written.map_err(WriteError::at(&self.destination))
    }

    /// Syncs it and renames it to its destination, replacing an existing file.
    pub fn keep(self) -> Result<(), WriteError> {
        let at = WriteError::at(&self.destination);
        self.hidden.as_file().sync_all().map_err(&at)?;
        fs::rename(self.hidden.path(), &self.destination).map_err(&at)?;
        let _ = self.hidden.keep(); // it is renamed already
        sync_folder(folder_of(&self.destination)).map_err(at)
    }

    /// Syncs it and renames it to its destination; returns it if the destination exists.
    pub fn keep_new(self) -> Result<Option<Self>, WriteError> {
        self.hidden
            .as_file()
            .sync_all()
            .map_err(WriteError::at(&self.destination))?;
        match fs::hard_link(self.hidden.path(), &self.destination) {
            Ok(()) => {} // `hidden` removes the other name
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(Some(self)),
            // This file system has no hard links.
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
                return self.keep().map(|()| None);
            }
            Err(error) => return Err(WriteError::at(&self.destination)(error)),
        }
        let synced = sync_folder(folder_of(&self.destination));
        synced.map_err(WriteError::at(&self.destination)).map(|()| None)
    }
}

/// Writes a whole file atomically: an interruption leaves the old one, if any. Creates the folder, too. Retries
/// transient errors.
pub fn write_whole(destination: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    with_retries(|| {
        let mut beside = TempFile::of(destination)?;
        beside.write(bytes)?;
        beside.keep()
    })
}

/// Writes a whole folder atomically: `make` fills a hidden one, which is then synced and renamed.
///
/// An existing folder of that name is exchanged with the new one and removed. If the file system cannot do that
/// atomically, the old one is moved aside just before: a kill between these two renames leaves it as `replaced-...`,
/// and if only the second fails, it is moved back.
pub fn write_folder_whole<E: From<WriteError>>(
    destination: &Path,
    make: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let at = WriteError::at(destination);
    let parent = folder_of(destination);
    fs::create_dir_all(parent).map_err(WriteError::at(parent))?;
    let unfinished = unswept(|| {
        let unfinished = HiddenFolder::create(parent, PREFIX)?;
        let locked = lock_folder(unfinished.path());
        Ok((is_there(unfinished.path()), (unfinished, locked)))
    });
    let (unfinished, _locked) = unfinished.map_err(&at)?;
    make(unfinished.path())?;
    sync_tree(unfinished.path()).map_err(&at)?;
    replace(unfinished.path(), destination).map_err(&at)?;
    sync_folder(parent).map_err(at)?;
    Ok(())
}

/// Removes a whole folder atomically: an interruption leaves all of it or nothing, under its name.
///
/// # Errors
/// On failure the folder is unchanged.
pub fn remove_folder_whole(folder: &Path) -> io::Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let hidden = HiddenFolder(folder_of(folder).join(format!("{PREFIX}{name}")));
    if hidden.path().exists() {
        fs::remove_dir_all(hidden.path())?; // left by an interrupted run
    }
    fs::rename(folder, hidden.path()) // dropping `hidden` removes it
}

/// Removes the unfinished entries of killed processes in `folder`. Those of a living process are kept.
///
/// Leftovers do no harm, so one that cannot be removed is only logged.
pub fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return; // no folder yet
    };
    for entry in entries.flatten() {
        let (path, kind) = (entry.path(), entry.file_type());
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let Some(kind) = kind.ok().filter(|kind| ours && (kind.is_file() || kind.is_dir())) else {
            continue;
        };
        // Locked until it is removed: a process that waits for the lock then sees that it is gone.
        let free = File::open(&path).ok().filter(|file| file.try_lock().is_ok());
        let Some(_held) = free else {
            log::debug!("{}: is being written by another process", path.display());
            continue;
        };
        let removed = match kind.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        match removed {
            Ok(()) => log::debug!("{}: left by an interrupted run, removed", path.display()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => log::warn!(
                "{}: left by an interrupted run, cannot be removed: {error}",
                path.display()
            ),
        }
    }
}

/// Returns the parent folder of a file or folder.
fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Creates a file, failing if it exists.
fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

/// A folder that is removed with its contents, unless it was renamed.
struct HiddenFolder(PathBuf);

impl HiddenFolder {
    fn create(parent: &Path, prefix: &str) -> io::Result<Self> {
        let made = Builder::new()
            .prefix(prefix)
            .make_in(parent, |path| fs::create_dir(path))?;
        Ok(Self(made.into_temp_path().keep()?))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    /// Keeps the folder.
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for HiddenFolder {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                log::debug!("{}: not removed yet: {error}", self.0.display()); // the next start sweeps it
            }
            _ => {}
        }
    }
}

/// Creates an entry and locks it, again if it was swept in between. `make` returns whether it still exists.
fn unswept<T>(mut make: impl FnMut() -> io::Result<(bool, T)>) -> io::Result<T> {
    loop {
        if let (true, made) = make()? {
            return Ok(made);
        }
    }
}

fn is_there(path: &Path) -> bool {
    path.try_exists().unwrap_or(true) // on errors, assume that it exists
}

/// Locks an entry against sweeping. On a file system without locks, nothing is swept either.
fn lock(file: &File) {
    if let Err(error) = file.lock() {
        log::debug!("no lock on an unfinished file: {error}");
    }
}

fn lock_folder(folder: &Path) -> Option<File> {
    let opened = File::open(folder).ok()?;
    lock(&opened);
    Some(opened)
}

fn replace(unfinished: &Path, destination: &Path) -> io::Result<()> {
    if !destination.is_dir() {
        return fs::rename(unfinished, destination);
    }
    if exchange(unfinished, destination)? {
        return Ok(()); // `hidden` now holds the old folder and removes it
    }
    let old = HiddenFolder::create(folder_of(destination), ASIDE)?; // removed together with the old folder
    fs::rename(destination, old.path())?;
    let Err(error) = fs::rename(unfinished, destination) else {
        return Ok(());
    };
    if let Err(error) = fs::rename(old.path(), destination) {
        let kept = old.keep();
        let (destination, kept) = (destination.display(), kept.display());
        log::warn!("{destination}: the old folder cannot be moved back, it is now {kept}: {error}");
    }
    Err(error)
}

/// Exchanges the names of two folders atomically; returns false if the file system cannot.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn exchange(one: &Path, other: &Path) -> io::Result<bool> {
    use std::os::unix::ffi::OsStrExt;
    let [one, other] = [one, other].map(|path| std::ffi::CString::new(path.as_os_str().as_bytes()));
    let (one, other) = (one?, other?);
    // SAFETY: both paths end in a zero byte.
    let done = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            one.as_ptr(),
            libc::AT_FDCWD,
            other.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if done == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(false),
        error => Err(error),
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn exchange(_one: &Path, _other: &Path) -> io::Result<bool> {
    Ok(false)
}

/// Syncs a folder and everything in it.
fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_folder(folder)
}

/// Syncs a folder's entries. Some file systems do not support this, which is ignored.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        done => done,
    }
}
