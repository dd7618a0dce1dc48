//! Settings files as values of their owners' types, with every problem by file, line and dotted path.
//!
//! serde stops at its first error, so that error is recorded, its entry is removed from the tree, and serde tries again until it
//! succeeds; then the owner checks the values.

use std::fmt;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::unknown;
use super::yaml::{self, Node, Origin, Step};
use crate::problems::Problems;

/// Upper limit for a settings file.
const MAX_BYTES: u64 = 1 << 20;

/// A problem of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File and line, or the `--set` option.
    pub place: String,
    /// Dotted path, empty for the document as a whole.
    pub path: String,
    /// Description of the problem, and what to do.
    pub message: String,
}

/// All problems of a configuration, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidConfig(pub Vec<Problem>);

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}: ", problem.place)?;
            if !problem.path.is_empty() {
                write!(f, "{}: ", problem.path)?;
            }
            write!(f, "{}", problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for InvalidConfig {}

impl InvalidConfig {
    fn whole(path: &Path, message: String) -> Self {
        Self(vec![Problem {
            place: path.display().to_string(),
            path: String::new(),
            message,
        }])
    }
}

/// Problems found so far, each with its position in reading order.
#[derive(Debug)]
pub struct Found<'a> {
    name: &'a Path,
    sets: &'a [String],
    problems: Vec<((bool, u64), Problem)>,
}

impl<'a> Found<'a> {
    /// None yet, of a file and of these `--set` options.
    pub fn new(name: &'a Path, sets: &'a [String]) -> Self {
        Self {
            name,
            sets,
            problems: Vec::new(),
        }
    }

    /// Adds a problem.
    pub fn at(&mut self, origin: Origin, path: &[Step], message: String) {
        let (order, place) = match origin {
            Origin::Line(0) => ((false, 0), self.name.display().to_string()),
            Origin::Line(line) => ((false, line), format!("{}:{line}", self.name.display())),
            Origin::Set(index) => ((true, index as u64), format!("--set {}", self.sets[index])),
        };
        self.problems.push((
            order,
            Problem {
                place,
                path: yaml::show_path(path),
                message,
            },
        ));
    }

    /// Reads a value, and adds what is wrong with it: in its types, or by `check`.
    pub fn read<T: DeserializeOwned + Default>(&mut self, tree: &Node, check: impl FnOnce(&T, &mut Problems)) -> T {
        let (value, pruned) = self.deserialize(tree);
        for (path, message) in Problems::of(|problems| check(&value, problems)) {
            let steps = yaml::parse_path(&path).unwrap_or_default();
            // Values that could not be read are reported already; their defaults are not.
            if !pruned
                .iter()
                .any(|gone| steps.starts_with(gone) || gone.starts_with(&steps))
            {
                self.at(tree.nearest(&steps).origin, &steps, message);
            }
        }
        value
    }

    /// Deserialises repeatedly: each error is recorded and its entry removed, until the rest can be read.
    fn deserialize<T: DeserializeOwned + Default>(&mut self, tree: &Node) -> (T, Vec<Vec<Step>>) {
        let mut rest = tree.clone();
        let mut pruned = Vec::new();
        loop {
            let json = match rest.to_json() {
                serde_json::Value::Null => serde_json::Value::Object(Default::default()),
                json => json,
            };
            let error = match serde_path_to_error::deserialize::<_, T>(json) {
                Ok(value) => return (value, pruned),
                Err(error) => error,
            };
            let mut path = steps(error.path());
            let mut message = error.inner().to_string();
            if let Some((key, hint)) = unknown::explain(&message) {
                if path.last() != Some(&Step::Key(key.clone())) {
                    path.push(Step::Key(key));
                }
                message = hint;
            }
            self.at(tree.nearest(&path).origin, &path, unknown::in_plain_words(&message));
            match rest.prune(&path) {
                Some(gone) => pruned.push(gone),
                // Nothing is left to remove: the document itself is of the wrong kind.
                None => return (T::default(), vec![Vec::new()]),
            }
        }
    }

    /// Returns the value, if nothing is wrong.
    ///
    /// # Errors
    /// Lists all problems, in the order of the file.
    pub fn judge<T>(mut self, value: T) -> Result<T, InvalidConfig> {
        if self.problems.is_empty() {
            return Ok(value);
        }
        self.problems.sort_by_key(|(order, _)| *order);
        Err(InvalidConfig(
            self.problems.into_iter().map(|(_, problem)| problem).collect(),
        ))
    }
}

/// Returns the text of a settings file, of this kind for messages.
///
/// # Errors
/// Fails for a file that cannot be read, is far too long, or is not UTF-8.
pub fn read_text(path: &Path, kind: &str) -> Result<String, InvalidConfig> {
    text(path, kind).map_err(|message| InvalidConfig::whole(path, message))
}

fn text(path: &Path, kind: &str) -> Result<String, String> {
    let size = std::fs::metadata(path)
        .map_err(|error| format!("cannot be read: {error}"))?
        .len();
    if size > MAX_BYTES {
        return Err(format!("is {size} bytes long; {kind} has at most {MAX_BYTES}"));
    }
    let bytes = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1;
        format!("line {line} is not UTF-8; save the file as UTF-8")
    })
}

fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}
