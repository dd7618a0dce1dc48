//! Files and folders that are there whole or not at all: written beside, synced, renamed.
//!
//! While it is made, a thing lies beside its destination in a hidden entry, named `.vtrain-` and some letters, which
//! its maker keeps locked. A process that is killed leaves its entries behind, unlocked; [`sweep`] takes those away.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

/// What the names of unfinished entries begin with.
const PREFIX: &str = ".vtrain-";

/// Something could not be written: where, and what the system says.
#[derive(Debug)]
pub struct WriteError {
    pub path: PathBuf,
    pub cause: io::Error,
}

impl WriteError {
    /// For `map_err`.
    pub fn at(path: &Path) -> impl Fn(io::Error) -> Self {
        move |cause| Self {
            path: path.into(),
            cause,
        }
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: cannot be written: {}", self.path.display(), self.cause)
    }
}

impl std::error::Error for WriteError {}

/// A file being made beside its destination; without [`keep`](Self::keep) it vanishes.
pub struct Beside {
    destination: PathBuf,
    hidden: NamedTempFile,
}

impl Beside {
    /// Starts a file, and makes the folder it belongs to.
    pub fn of(destination: &Path) -> Result<Self, WriteError> {
        let folder = folder_of(destination);
        fs::create_dir_all(folder).map_err(WriteError::at(folder))?;
        let hidden = hidden(0o666).tempfile_in(folder).map_err(WriteError::at(destination))?;
        lock(hidden.as_file());
        Ok(Self {
            destination: destination.into(),
            hidden,
        })
    }

    /// Where it lies for now: for libraries that write by name.
    pub fn path(&self) -> &Path {
        self.hidden.path()
    }

    /// Adds bytes at its end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.hidden.write_all(bytes).map_err(WriteError::at(&self.destination))
    }

    /// Syncs it and gives it its name; what had that name is replaced.
    pub fn keep(self) -> Result<(), WriteError> {
        let at = WriteError::at(&self.destination);
        self.hidden.as_file().sync_all().map_err(&at)?;
        self.hidden
            .persist(&self.destination)
            .map_err(|failed| at(failed.error))?;
        sync_folder(folder_of(&self.destination)).map_err(at)
    }

    /// Syncs it and gives it its name, unless that is taken: then it comes back.
    pub fn keep_new(self) -> Result<Option<Self>, WriteError> {
        let Self { destination, hidden } = self;
        hidden.as_file().sync_all().map_err(WriteError::at(&destination))?;
        match hidden.persist_noclobber(&destination) {
            Ok(_) => {
                let synced = sync_folder(folder_of(&destination));
                synced.map_err(WriteError::at(&destination)).map(|()| None)
            }
            Err(failed) => {
                let (taken, hidden) = (failed.error.kind() == ErrorKind::AlreadyExists, failed.file);
                let beside = Self { destination, hidden };
                match taken {
                    true => Ok(Some(beside)),
                    false => beside.keep().map(|()| None), // this file system has no such rename
                }
            }
        }
    }
}

/// Writes a whole file: whoever is interrupted leaves the old one, if there was one. Makes the folder, too.
pub fn write_whole(destination: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let mut beside = Beside::of(destination)?;
    beside.write(bytes)?;
    beside.keep()
}

/// Makes a whole folder: `make` fills a hidden one, which is then synced and gets its name.
///
/// An old folder of that name is moved away just before. Whoever is killed between the two renames leaves neither under
/// that name; if only the second fails, the old folder comes back.
pub fn write_folder_whole<E: From<WriteError>>(
    destination: &Path,
    make: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let at = WriteError::at(destination);
    let parent = folder_of(destination);
    fs::create_dir_all(parent).map_err(WriteError::at(parent))?;
    let unfinished = hidden(0o777).tempdir_in(parent).map_err(&at)?;
    let _locked = lock_folder(unfinished.path());
    make(unfinished.path())?;
    sync_tree(unfinished.path()).map_err(&at)?;
    replace(unfinished.path(), destination).map_err(&at)?;
    let _ = unfinished.keep(); // it is at its destination
    sync_folder(parent).map_err(at)?;
    Ok(())
}

/// Removes a whole folder: first its name, then what is in it, so that nobody ever finds half of it under its name.
pub fn remove_folder_whole(folder: &Path) -> io::Result<()> {
    let old = hidden(0o777).tempdir_in(folder_of(folder))?;
    let _locked = lock_folder(old.path());
    fs::rename(folder, old.path().join("old"))?;
    old.close()
}

/// Takes away what killed processes left unfinished in `folder`. What a living process is making stays.
///
/// Leftovers do no harm, so one that cannot be removed is told of and no more.
pub fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return; // nothing there yet
    };
    for entry in entries.flatten() {
        let (path, kind) = (entry.path(), entry.file_type());
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let Some(kind) = kind.ok().filter(|kind| ours && (kind.is_file() || kind.is_dir())) else {
            continue;
        };
        let free = File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if !free {
            log::debug!("{}: is being written by another process", path.display());
            continue;
        }
        let removed = match kind.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        match removed {
            Ok(()) => log::debug!("{}: left by an interrupted run, removed", path.display()),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => log::warn!("{}: left by an interrupted run, stays: {error}", path.display()),
        }
    }
}

/// The folder that a file or folder belongs to.
fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Names and permissions of unfinished entries: `mode` as far as the user's umask allows, as of any new file.
fn hidden(mode: u32) -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// Keeps an entry from being swept. Where the file system knows no locks, nothing is swept either.
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
    let old = hidden(0o777).tempdir_in(folder_of(destination))?; // removed with the old folder in it
    fs::rename(destination, old.path())?;
    fs::rename(unfinished, destination).inspect_err(|_| {
        if let Err(error) = fs::rename(old.path(), destination) {
            log::warn!("{}: the old folder cannot be put back: {error}", destination.display());
        }
    })
}

/// Brings a folder, and all that is in it, to the disk.
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

/// Brings a folder's names to the disk. Some file systems cannot, and say so.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        done => done,
    }
}
