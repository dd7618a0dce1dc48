//! What can be wrong with a clip, one sentence each: the file, what was found, what to do.

use std::fmt;
use std::path::PathBuf;

use crate::disk::WriteError;

/// A clip that cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VideoError {
    /// No such file.
    Missing { path: PathBuf },
    /// Zero bytes.
    Empty { path: PathBuf },
    /// libav makes nothing of it, or the system does not let us read it.
    Unreadable { path: PathBuf, reason: String },
    /// A picture of a kind that is told, and not read: `HEIC`, `AVIF`.
    Heif { path: PathBuf, kind: &'static str },
    /// Sound only, or no stream at all.
    NoVideo { path: PathBuf },
    /// The file ends before its clip does.
    Truncated { path: PathBuf, reason: String },
    /// More than we are willing to allocate.
    TooLarge { path: PathBuf, reason: String },
    /// A frame that is there cannot be decoded.
    Decode {
        path: PathBuf,
        frame: usize,
        reason: String,
    },
    /// A file cannot be written.
    Encode { path: PathBuf, reason: String },
}

impl fmt::Display for VideoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use VideoError::*;
        match self {
            Missing { path } => write!(f, "{}: no such file", path.display()),
            Empty { path } => write!(f, "{}: the file has zero bytes", path.display()),
            Unreadable { path, reason } => write!(f, "{}: cannot be read as video: {reason}", path.display()),
            Heif { path, kind } => {
                let article = if *kind == "AVIF" { "an" } else { "a" };
                write!(
                    f,
                    "{}: is {article} {kind} picture, which is not read; save it as JPEG or PNG",
                    path.display()
                )
            }
            NoVideo { path } => write!(f, "{}: has no video stream", path.display()),
            Truncated { path, reason } => {
                write!(f, "{}: ends before its clip does: {reason}", path.display())
            }
            TooLarge { path, reason } => write!(f, "{}: {reason}", path.display()),
            Decode { path, frame, reason } => {
                write!(f, "{}: frame {frame} cannot be decoded: {reason}", path.display())
            }
            Encode { path, reason } => write!(f, "{}: cannot be written: {reason}", path.display()),
        }
    }
}

impl std::error::Error for VideoError {}

impl From<WriteError> for VideoError {
    fn from(error: WriteError) -> Self {
        VideoError::Encode {
            path: error.path,
            reason: error.cause.to_string(),
        }
    }
}
