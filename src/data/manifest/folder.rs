//! A data set's folder: what it holds, and that nothing named in it leads out of it.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use super::super::refusal::{Reason, Refusal, Source};
use super::Media;

pub(super) struct Folder {
    /// As configured, for paths that users read.
    shown: PathBuf,
    /// Without links, to compare with.
    root: PathBuf,
    follow_links: bool,
}

/// Everything below a folder, by relative path and sorted, hidden files left out.
#[derive(Default)]
pub(super) struct Contents {
    pub files: Vec<PathBuf>,
    pub refused: Vec<Refusal>,
    pub notes: Vec<String>,
}

impl Folder {
    pub fn open(path: &Path, follow_links: bool) -> Result<Folder, Refusal> {
        let refuse = |reason| Refusal::of_data_set(Source::file(path), reason);
        let root = path.canonicalize().map_err(|e| {
            refuse(match e.kind() {
                ErrorKind::NotFound => Reason::NoFolder,
                _ => Reason::UnreadableFile {
                    error: e.to_string(),
                },
            })
        })?;
        match root.is_dir() {
            true => Ok(Folder {
                shown: path.to_owned(),
                root,
                follow_links,
            }),
            false => Err(refuse(Reason::NotAFolder)),
        }
    }

    /// The path of something in the folder, as its user would write it.
    pub fn shown(&self, relative: impl AsRef<Path>) -> PathBuf {
        match relative.as_ref().as_os_str().is_empty() {
            true => self.shown.clone(),
            false => self.shown.join(relative),
        }
    }

    /// An absolute name within the folder is as good as the relative one.
    pub fn relative(&self, name: &Path) -> PathBuf {
        let inside = name
            .strip_prefix(&self.root)
            .or_else(|_| name.strip_prefix(&self.shown));
        if name.is_absolute() {
            inside.unwrap_or(name).to_owned()
        } else {
            name.to_owned()
        }
    }

    /// The path of a file that has content and, unless links are followed, lies within the folder.
    pub fn file(&self, relative: &Path) -> Result<PathBuf, Reason> {
        let path = self.shown.join(relative);
        let real = path
            .canonicalize()
            .map_err(|e| self.not_there(relative, &path, &e))?;
        if !self.follow_links && !real.starts_with(&self.root) {
            return Err(Reason::OutsideFolder { leads_to: real });
        }
        let facts = fs::metadata(&real).map_err(|e| Reason::UnreadableFile {
            error: e.to_string(),
        })?;
        match (facts.is_file(), facts.len()) {
            (false, _) => Err(Reason::NotAFile), // opening a pipe would wait for ever
            (true, 0) => Err(Reason::EmptyFile),
            (true, _) => Ok(path),
        }
    }

    fn not_there(&self, relative: &Path, path: &Path, error: &std::io::Error) -> Reason {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {}
            _ => {
                return Reason::UnreadableFile {
                    error: error.to_string(),
                };
            }
        }
        let meant = without_dots(&self.root.join(relative));
        if !self.follow_links && !meant.starts_with(&self.root) {
            return Reason::OutsideFolder { leads_to: meant };
        }
        Reason::MissingFile {
            link_to: fs::read_link(path).ok(),
        }
    }

    /// The names of the files at the top, sorted.
    pub fn top(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .filter_map(|e| e.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    pub fn search(&self) -> Contents {
        let mut found = Contents::default();
        let mut seen = HashSet::from([self.root.clone()]); // links may lead round in circles
        let mut waiting = vec![PathBuf::new()];
        let mut hidden = Vec::new();
        while let Some(folder) = waiting.pop() {
            let refuse = |e: std::io::Error| {
                Refusal::of_data_set(
                    Source::file(self.shown(&folder)),
                    Reason::UnreadableFile {
                        error: e.to_string(),
                    },
                )
            };
            let entries = match fs::read_dir(self.root.join(&folder)) {
                Ok(entries) => entries,
                Err(e) => {
                    found.refused.push(refuse(e));
                    continue;
                }
            };
            for entry in entries {
                match entry {
                    Err(e) => found.refused.push(refuse(e)),
                    Ok(entry) if entry.file_name().as_encoded_bytes().starts_with(b".") => {
                        hidden.push(folder.join(entry.file_name()));
                    }
                    Ok(entry) => self.sort_in(
                        folder.join(entry.file_name()),
                        &mut found,
                        &mut waiting,
                        &mut seen,
                    ),
                }
            }
        }
        hidden.retain(|path| Media::of(path).is_some());
        if !hidden.is_empty() {
            hidden.sort();
            found.notes.push(format!(
                "hidden files are passed over: {}",
                super::some_of(&hidden)
            ));
        }
        found.files.sort();
        found.refused.sort_by(|a, b| a.source.cmp(&b.source));
        found.notes.sort();
        found
    }

    fn sort_in(
        &self,
        relative: PathBuf,
        found: &mut Contents,
        waiting: &mut Vec<PathBuf>,
        seen: &mut HashSet<PathBuf>,
    ) {
        let path = self.root.join(&relative);
        let real = match path.canonicalize() {
            Ok(real) if real.is_dir() => real,
            _ => return found.files.push(relative), // a broken link too: what names it will say so
        };
        if !real.starts_with(&self.root) && !self.follow_links {
            let name = relative.display().to_string();
            let reason = Reason::OutsideFolder { leads_to: real };
            found.refused.push(Refusal::of_clip(
                name,
                Source::file(self.shown(relative)),
                reason,
            ));
        } else if path.is_symlink() && real.starts_with(&self.root) {
            let note = format!(
                "{} links to a folder of this data set, which is searched where it is",
                relative.display()
            );
            found.notes.push(note);
        } else if seen.insert(real) {
            waiting.push(relative);
        }
    }
}

/// The path without `.` and `..`, as it reads; for files that do not exist.
fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => _ = plain.pop(),
            part => plain.push(part),
        }
    }
    plain
}
