//! Errors of writing, with advice for the user.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A failed write: the path, and the system's error.
#[derive(Debug)]
pub struct WriteError {
    /// Path of the file.
    pub path: PathBuf,
    /// Error of the system.
    pub cause: io::Error,
}

impl WriteError {
    /// Returns a converter for `map_err`.
    pub fn at(path: &Path) -> impl Fn(io::Error) -> Self {
        move |cause| Self {
            path: path.into(),
            cause,
        }
    }

    /// Returns true if a retry may succeed, as on a network file system.
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

/// Returns advice for the user.
fn advice(cause: &io::Error) -> Option<&'static str> {
    match cause.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Some("free some space there"),
        ErrorKind::FileTooLarge => Some("raise the limit on file sizes (ulimit -f)"),
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            Some("choose a writable folder, or change its permissions")
        }
        ErrorKind::TimedOut | ErrorKind::StaleNetworkFileHandle => Some(FAULT),
        _ if is_fault(cause) => Some(FAULT),
        _ => None,
    }
}

const FAULT: &str = "the disk or its connection failed";

/// Checks for EIO, which has no `ErrorKind`.
fn is_fault(cause: &io::Error) -> bool {
    cfg!(unix) && cause.raw_os_error() == Some(5)
}
