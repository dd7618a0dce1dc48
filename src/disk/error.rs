//! What goes wrong when something is written, in words that say what to do.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

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

    /// Whether the same may work a moment later, as on a network's file system.
    pub fn may_pass(&self) -> bool {
        matches!(
            self.cause.kind(),
            ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::StaleNetworkFileHandle
        ) || is_fault(&self.cause)
    }
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: cannot be written: {}", self.path.display(), self.cause)?;
        match advice(&self.cause) {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for WriteError {}

/// What the user can do about it.
fn advice(cause: &io::Error) -> Option<&'static str> {
    match cause.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some("make room there"),
        ErrorKind::FileTooLarge => Some("raise the limit on file sizes (ulimit -f)"),
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            Some("name a place that may be written, or change who may write to it")
        }
        ErrorKind::TimedOut | ErrorKind::StaleNetworkFileHandle => Some(FAULT),
        _ if is_fault(cause) => Some(FAULT),
        _ => None,
    }
}

const FAULT: &str = "the disk, or the way to it, has a fault";

/// EIO, which has no kind of its own.
fn is_fault(cause: &io::Error) -> bool {
    cfg!(unix) && cause.raw_os_error() == Some(5)
}
