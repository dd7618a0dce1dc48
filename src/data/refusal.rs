//! Why something in a data set cannot be used: where it was said, what was found, what to do.
//!
//! Everything wrong is collected as a [`Refusal`] and reported at once; nothing is dropped in silence.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::reason::Reason;

/// A place in a file: `videos.txt:3`, or the whole file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// As the user reaches it: the data set's `path` as configured, joined with the file's name.
    pub file: PathBuf,
    /// Counted from 1, as editors count.
    pub line: Option<usize>,
}

impl Source {
    pub fn file(file: impl Into<PathBuf>) -> Source {
        Source {
            file: file.into(),
            line: None,
        }
    }

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

/// One thing that cannot be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// The clip, or the file where no clip is meant, relative to the data set's folder.
    pub name: String,
    pub source: Source,
    /// Boxed, since it is much larger than what it is an alternative to.
    pub reason: Box<Reason>,
    /// Whether a run must not start: always for faults of a whole data set, and for faults of
    /// single clips as the data set's `on_bad_clip` says.
    pub stops: bool,
}

impl Refusal {
    /// A fault of one clip, which `on_bad_clip` decides about.
    pub(super) fn of_clip(name: impl Into<String>, source: Source, reason: Reason) -> Refusal {
        Refusal {
            name: name.into(),
            source,
            reason: Box::new(reason),
            stops: false,
        }
    }

    /// A fault that leaves nothing in the data set to be trusted, such as a manifest that cannot be read.
    pub(super) fn of_data_set(source: Source, reason: Reason) -> Refusal {
        Refusal {
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

/// `source: name: reason` on one line, the name left out where the source ends in it.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let said = self.name.is_empty() || self.source.file.ends_with(&self.name);
        let name = if said {
            String::new()
        } else {
            format!("{}: ", self.name)
        };
        let line = format!("{}: {name}{}", self.source, self.reason);
        // A file may have a line break, or a terminal's commands, in its name.
        line.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => f.write_char(c),
        })
    }
}

impl Serialize for Refusal {
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
