//! Errors of clips, one sentence each: the file, the problem, the advice.

use std::fmt;
use std::path::PathBuf;

use crate::disk::WriteError;

/// A clip that cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VideoError {
    /// No such file.
    Missing {
        /// Path of the file.
        path: PathBuf,
    },
    /// Zero bytes.
    Empty {
        /// Path of the file.
        path: PathBuf,
    },
    /// libav or the system cannot read it.
    Unreadable {
        /// Path of the file.
        path: PathBuf,
        /// Message of the system or the decoder.
        reason: String,
    },
    /// A picture of a recognised but unsupported kind: `HEIC`, `AVIF`.
    Heif {
        /// Path of the file.
        path: PathBuf,
        /// Kind of picture: `HEIC` or `AVIF`.
        kind: &'static str,
    },
    /// Sound only, or no stream at all.
    NoVideo {
        /// Path of the file.
        path: PathBuf,
    },
    /// The file ends before its clip does.
    Truncated {
        /// Path of the file.
        path: PathBuf,
        /// Message of the decoder.
        reason: String,
    },
    /// Larger than the allocation limit.
    TooLarge {
        /// Path of the file.
        path: PathBuf,
        /// Size that was found, and the limit.
        reason: String,
    },
    /// A frame cannot be decoded.
    Decode {
        /// Path of the file.
        path: PathBuf,
        /// Index of the frame, from 0.
        frame: usize,
        /// Message of the decoder.
        reason: String,
    },
    /// A file cannot be written.
    Encode {
        /// Path of the file.
        path: PathBuf,
        /// Message of the encoder or the system.
        reason: String,
    },
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
