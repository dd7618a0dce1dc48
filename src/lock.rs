//! One run at a time in a folder.
//!
//! The holder keeps `.lock` in the folder locked by the system (flock), which ends with the process however it ends; the
//! file says who that is. Where the file system knows no locks, the file's word is taken as long as its process lives.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::disk::WriteError;

/// The file's name.
const NAME: &str = ".lock";

/// A folder that is ours until this is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
    /// Whether the folder was made for the lock.
    made: bool,
}

/// Why a folder cannot be had.
#[derive(Debug)]
pub enum LockError {
    Held { folder: PathBuf, by: Option<Holder> },
    Unwritable(WriteError),
}

/// A process, as the file names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub host: String,
    pub pid: u32,
}

impl Lock {
    /// Makes the folder, if it is not there, and locks it. A lock whose process is gone is taken over.
    ///
    /// # Errors
    /// Another process holds it; the file cannot be written.
    pub fn take(folder: &Path) -> Result<Self, LockError> {
        let made = !folder.exists();
        fs::create_dir_all(folder).map_err(|cause| unwritable(folder, cause))?;
        let path = folder.join(NAME);
        let mut file = loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|cause| unwritable(&path, cause))?;
            let held = |by| LockError::Held {
                folder: folder.into(),
                by,
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(held(Holder::read(&mut file))),
                Err(TryLockError::Error(error)) => {
                    log::debug!("{}: no locks on this file system: {error}", path.display());
                    if let Some(by) = Holder::read(&mut file).filter(Holder::may_live) {
                        return Err(held(Some(by)));
                    }
                }
            }
            // The last holder may have removed the file between the opening and the lock.
            if is_at(&file, &path) {
                break file;
            }
        };
        if let Some(gone) = Holder::read(&mut file) {
            log::warn!("{}: {gone} has ended without its leave; going on", folder.display());
        }
        Holder::here()
            .write(&mut file)
            .map_err(|cause| unwritable(&path, cause))?;
        Ok(Self { path, file, made })
    }
}

impl Drop for Lock {
    /// Removes the file while it is still locked; and the folder, if it was made for the lock and nothing came of it.
    fn drop(&mut self) {
        let _ = self.file.set_len(0); // for those who have it open
        let _ = fs::remove_file(&self.path);
        if let Some(folder) = self.path.parent().filter(|_| self.made) {
            let _ = fs::remove_dir(folder); // only one that is empty goes
        }
    }
}

impl Holder {
    /// This process.
    pub fn here() -> Self {
        Self {
            host: host(),
            pid: std::process::id(),
        }
    }

    fn read(file: &mut File) -> Option<Self> {
        let mut text = String::new();
        file.rewind().ok()?;
        file.take(1024).read_to_string(&mut text).ok()?;
        let (host, pid) = text.trim().rsplit_once(' ')?;
        Some(Self {
            host: host.into(),
            pid: pid.parse().ok()?,
        })
    }

    fn write(&self, file: &mut File) -> io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(format!("{} {}\n", self.host, self.pid).as_bytes())
    }

    /// Of another host nothing is known.
    fn may_live(&self) -> bool {
        self.host != host() || lives(self.pid)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on {}", self.pid, self.host)
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::Held { folder, by } => {
                let by = by.as_ref().map_or("another process".to_string(), Holder::to_string);
                let folder = folder.display();
                write!(
                    f,
                    "{folder}: {by} is training there; wait for it, end it, or take another output_dir"
                )
            }
            LockError::Unwritable(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LockError {}

fn unwritable(path: &Path, cause: io::Error) -> LockError {
    LockError::Unwritable(WriteError::at(path)(cause))
}

/// Whether the open file is the one that has this name.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
        match (file.metadata(), fs::metadata(path)) {
            (Ok(ours), Ok(named)) => same(ours, named),
            _ => false,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

/// The name of this machine.
fn host() -> String {
    #[cfg(unix)]
    {
        let mut name = [0u8; 256];
        // SAFETY: the system writes at most that many bytes, and the last one stays zero.
        let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if failed == 0 && !name.is_empty() {
            return String::from_utf8_lossy(name).into_owned();
        }
    }
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "this host".into())
}

/// Whether there is such a process here; where that cannot be asked, yes.
fn lives(pid: u32) -> bool {
    #[cfg(unix)]
    {
        let Ok(pid) = i32::try_from(pid) else {
            return false;
        };
        // SAFETY: signal 0 is only asked whether it could be sent.
        let sent = unsafe { libc::kill(pid, 0) } == 0;
        sent || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
    }
    #[cfg(not(unix))]
    {
        let _ = pid;
        true
    }
}
