//! Rejections of items in a data set: source, problem, advice.
//!
//! All problems are collected as [`Rejection`]s and reported at once; nothing is dropped silently.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::reason::Reason;

/// A place in a file: `videos.txt:3`, or the whole file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// Path as the user reaches it: the data set's `path` as configured, joined with the file's name.
    pub file: PathBuf,
    /// Line, counted from 1 as in editors.
    pub line: Option<usize>,
}

impl Source {
    /// A file as a whole.
    pub fn file(file: impl Into<PathBuf>) -> Source {
        Source {
            file: file.into(),
            line: None,
        }
    }

    /// A line of a file, from 1.
    pub fn line(file: impl Into<PathBuf>, line: usize) -> Source {
        Source {
            file: file.into(),
            line: Some(line),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file.display()),
            None => write!(f, "{}", self.file.display()),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// An item that cannot be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejection {
    /// Clip, or file if no clip is meant, relative to the data set's folder.
    pub name: String,
    /// Place that named it.
    pub source: Source,
    /// Reason, boxed because it is much larger than the alternative results.
    pub reason: Box<Reason>,
    /// True if a run must not start: always for problems of a whole data set; for those of single clips, according to
    /// the data set's `on_invalid_clip`.
    pub stops: bool,
}

impl Rejection {
    /// Rejection of one clip, subject to `on_invalid_clip`.
    pub(super) fn of_clip(name: impl Into<String>, source: Source, reason: Reason) -> Rejection {
        Rejection {
            name: name.into(),
            source,
            reason: Box::new(reason),
            stops: false,
        }
    }

    /// Rejection of a whole data set, such as a manifest that cannot be read.
    pub(super) fn of_data_set(source: Source, reason: Reason) -> Rejection {
        Rejection {
            name: file_name(&source.file),
            source,
            reason: Box::new(reason),
            stops: true,
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

/// Formats `source: name: reason` on one line, without the name if the source ends in it.
impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let said = self.name.is_empty() || self.source.file.ends_with(&self.name);
        let name = if said {
            String::new()
        } else {
            format!("{}: ", self.name)
        };
        let line = format!("{}: {name}{}", self.source, self.reason);
        // File names may contain line breaks or terminal commands.
        line.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => f.write_char(c),
        })
    }
}

impl Serialize for Rejection {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Line<'a> {
            name: &'a str,
            source: &'a Source,
            stops: bool,
            message: String,
            #[serde(flatten)]
            reason: &'a Reason,
        }
        let message = self.reason.to_string();
        let (name, source, reason) = (&self.name, &self.source, &self.reason);
        Line {
            name,
            source,
            stops: self.stops,
            message,
            reason,
        }
        .serialize(to)
    }
}
