//! Lock of an output folder: one run at a time.
//!
//! The holder keeps `.lock` in the folder locked by the system (flock), which is released with the process however it
//! ends; the file names the process. On a file system without locks, the file counts as long as its process lives.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::disk::WriteError;

/// Name of the lock file.
const NAME: &str = ".lock";

/// Limit for the bytes of the file that are read.
const LONGEST: u64 = 1024;

/// POSIX limit for a host name, including the zero byte at the end.
const HOST_BYTES: usize = 256;

/// A lock on a folder, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
    /// True if the folder was created for the lock.
    made: bool,
}

/// Reasons why a folder cannot be locked.
#[derive(Debug)]
pub enum LockError {
    /// Another run holds the folder.
    Held {
        /// Folder to be locked.
        folder: PathBuf,
        /// Process that holds it, if the lock file names one.
        by: Option<Holder>,
    },
    /// The lock file cannot be written.
    Unwritable(WriteError),
}

/// A process, as named by the lock file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Name of the machine.
    pub host: String,
    /// Process id.
    pub pid: u32,
}

impl Lock {
    /// Creates the folder if needed, and locks it. A lock whose process has ended is taken over.
    ///
    /// # Errors
    /// Fails if another process holds it, and if the file cannot be written.
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
            // The previous holder may have removed the file between opening and locking.
            if is_at(&file, &path) {
                break file;
            }
        };
        if let Some(gone) = Holder::read(&mut file) {
            log::warn!("{}: removed the stale lock of {gone}", folder.display());
        }
        Holder::here()
            .write(&mut file)
            .map_err(|cause| unwritable(&path, cause))?;
        Ok(Self { path, file, made })
    }
}

impl Drop for Lock {
    /// Removes the file while it is still locked; and the folder, if it was created for the lock and is still empty.
    fn drop(&mut self) {
        let _ = self.file.set_len(0); // for processes that have it open
        let _ = fs::remove_file(&self.path);
        if let Some(folder) = self.path.parent().filter(|_| self.made) {
            let _ = fs::remove_dir(folder); // fails unless it is empty
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
        file.take(LONGEST).read_to_string(&mut text).ok()?;
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

    /// Returns true for processes of other hosts, which cannot be checked.
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

/// Checks that the open file is still the one of this name.
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

/// Returns the name of this machine.
fn host() -> String {
    #[cfg(unix)]
    {
        let mut name = [0u8; HOST_BYTES];
        // SAFETY: the system writes at most that many bytes, and the last one stays zero.
        let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if failed == 0 && !name.is_empty() {
            return String::from_utf8_lossy(name).into_owned();
        }
    }
    std::env::var("COMPUTERNAME").unwrap_or_else(|_| "this host".into())
}

/// Checks for a process on this machine; true if that cannot be checked.
fn lives(pid: u32) -> bool {
    #[cfg(unix)]
    {
        let Ok(pid) = i32::try_from(pid) else {
            return false;
        };
        // SAFETY: signal 0 only checks whether a signal could be sent.
        let sent = unsafe { libc::kill(pid, 0) } == 0;
        sent || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
    }
    #[cfg(not(unix))]
    {
        let _ = pid;
        true
    }
}
