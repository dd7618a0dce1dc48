//! Files and folders that are there whole or not at all: written beside, synced, renamed.
//!
//! While it is made, a thing lies beside its destination in a hidden entry, named `.vtrain-` and some letters, which
//! its maker keeps locked. A process that is killed leaves its entries behind, unlocked; [`sweep`] takes those away.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

mod error;
mod journal;
mod patience;
pub mod space;
mod spelling;
pub mod writable;

pub use error::WriteError;
pub use journal::Journal;
pub use patience::patiently;
pub use spelling::{composed, spelled};

/// What the names of unfinished entries begin with.
const PREFIX: &str = ".vtrain-";

/// What the name of a folder begins with that lies aside while another takes its place: it is never swept.
const ASIDE: &str = "replaced-";

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

    /// Where it lies for now: for libraries that write by name.
    pub fn path(&self) -> &Path {
        self.hidden.path()
    }

    /// Adds bytes at its end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        // The file itself: tempfile's own errors no longer say their number.
        let file = self.hidden.as_file_mut();
        file.write_all(bytes).map_err(WriteError::at(&self.destination))
    }

    /// Syncs it and gives it its name; what had that name is replaced.
    pub fn keep(self) -> Result<(), WriteError> {
        let at = WriteError::at(&self.destination);
        self.hidden.as_file().sync_all().map_err(&at)?;
        fs::rename(self.hidden.path(), &self.destination).map_err(&at)?;
        let _ = self.hidden.keep(); // it has its name
        sync_folder(folder_of(&self.destination)).map_err(at)
    }

    /// Syncs it and gives it its name, unless that is taken: then it comes back.
    pub fn keep_new(self) -> Result<Option<Self>, WriteError> {
        self.hidden
            .as_file()
            .sync_all()
            .map_err(WriteError::at(&self.destination))?;
        match fs::hard_link(self.hidden.path(), &self.destination) {
            Ok(()) => {} // the other name goes with `hidden`
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(Some(self)),
            // This file system has no links.
            Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) => {
                return self.keep().map(|()| None);
            }
            Err(error) => return Err(WriteError::at(&self.destination)(error)),
        }
        let synced = sync_folder(folder_of(&self.destination));
        synced.map_err(WriteError::at(&self.destination)).map(|()| None)
    }
}

/// Writes a whole file: whoever is interrupted leaves the old one, if there was one. Makes the folder, too. What may pass is
/// tried again.
pub fn write_whole(destination: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    patiently(|| {
        let mut beside = Beside::of(destination)?;
        beside.write(bytes)?;
        beside.keep()
    })
}

/// Makes a whole folder: `make` fills a hidden one, which is then synced and gets its name.
///
/// An old folder of that name changes places with the new one and goes. Where the file system cannot do that at once, the
/// old one is moved aside just before: whoever is killed between these two renames leaves it as `replaced-...`, and if only
/// the second fails, it comes back.
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

/// Removes a whole folder: whoever is interrupted leaves all of it or nothing, under its name.
///
/// # Errors
/// The folder is as it was.
pub fn remove_folder_whole(folder: &Path) -> io::Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let hidden = HiddenFolder(folder_of(folder).join(format!("{PREFIX}{name}")));
    if hidden.path().exists() {
        fs::remove_dir_all(hidden.path())?; // left by an interrupted run
    }
    fs::rename(folder, hidden.path()) // and there it goes
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
        // Held until it is gone: who comes to lock it then sees that it is.
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

/// As any new file, but one that was not there.
fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

/// A folder that goes with all that is in it, unless it has got another name.
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

    /// Lets it stay.
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for HiddenFolder {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                log::debug!("{}: stays for now: {error}", self.0.display()); // the next start sweeps it
            }
            _ => {}
        }
    }
}

/// Makes an entry and locks it, which may find it swept in between: then once more. `make` says whether it is still there.
fn unswept<T>(mut make: impl FnMut() -> io::Result<(bool, T)>) -> io::Result<T> {
    loop {
        if let (true, made) = make()? {
            return Ok(made);
        }
    }
}

fn is_there(path: &Path) -> bool {
    path.try_exists().unwrap_or(true) // what cannot be asked is not gone
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
    if exchange(unfinished, destination)? {
        return Ok(()); // the old folder is removed where the new one was made
    }
    let old = HiddenFolder::create(folder_of(destination), ASIDE)?; // removed with the old folder in it
    fs::rename(destination, old.path())?;
    let Err(error) = fs::rename(unfinished, destination) else {
        return Ok(());
    };
    if let Err(error) = fs::rename(old.path(), destination) {
        let kept = old.keep();
        let (destination, kept) = (destination.display(), kept.display());
        log::warn!("{destination}: the old folder cannot be put back, it is {kept} now: {error}");
    }
    Err(error)
}

/// Gives each of two folders the other's name at once; false where the file system cannot.
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
