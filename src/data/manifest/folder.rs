//! A data set's folder: its contents, and a check that nothing named in it leads out of it.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use super::super::reason::Reason;
use super::super::rejection::{Rejection, Source};
use super::Media;
use crate::disk;

pub(super) struct Folder {
    /// Path as configured, for messages.
    shown: PathBuf,
    /// Path without links, to compare with.
    root: PathBuf,
    follow_links: bool,
}

/// All files below a folder, by relative path and sorted, without hidden files.
#[derive(Default)]
pub(super) struct Contents {
    pub files: Vec<PathBuf>,
    pub refused: Vec<Rejection>,
    pub notes: Vec<String>,
}

impl Folder {
    pub fn open(path: &Path, follow_links: bool) -> Result<Folder, Rejection> {
        let refuse = |reason| Rejection::of_data_set(Source::file(path), reason);
        let path = &*disk::spelled(path);
        let root = path.canonicalize().map_err(|e| {
            refuse(match e.kind() {
                ErrorKind::NotFound => Reason::NoFolder,
                _ => Reason::UnreadableFile { error: e.to_string() },
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

    /// Returns the path of something in the folder, as its user would write it.
    pub fn shown(&self, relative: impl AsRef<Path>) -> PathBuf {
        match relative.as_ref().as_os_str().is_empty() {
            true => self.shown.clone(),
            false => self.shown.join(relative),
        }
    }

    /// Returns a name as a path from the folder, without `.`; an absolute name within the folder is allowed.
    pub fn relative(&self, name: &Path) -> PathBuf {
        let inside = [&self.root, &self.shown]
            .into_iter()
            .find_map(|top| name.strip_prefix(top).ok());
        let name = if name.is_absolute() {
            inside.unwrap_or(name)
        } else {
            name
        };
        name.components().filter(|part| *part != Component::CurDir).collect()
    }

    /// Returns the path of a file that has content and, unless links are followed, is within the folder.
    pub fn file(&self, relative: &Path) -> Result<PathBuf, Reason> {
        let path = disk::spelled(&self.shown.join(relative)).into_owned();
        let real = path.canonicalize().map_err(|e| self.not_there(relative, &path, &e))?;
        if !self.follow_links && !real.starts_with(&self.root) {
            return Err(Reason::OutsideFolder {
                leads_to: real.display().to_string(),
            });
        }
        let facts = fs::metadata(&real).map_err(|e| Reason::UnreadableFile { error: e.to_string() })?;
        match (facts.is_file(), facts.len()) {
            (false, _) => Err(Reason::NotAFile), // opening a pipe would block forever
            (true, 0) => Err(Reason::EmptyFile),
            (true, _) => Ok(path),
        }
    }

    /// Returns the path of a manifest, which the config may name with `key`.
    pub fn manifest(&self, relative: &Path, key: &'static str) -> Result<PathBuf, Rejection> {
        self.file(relative).map_err(|reason| {
            let reason = match reason {
                Reason::MissingFile { link_to: None } => Reason::NoManifest {
                    looked_for: relative.display().to_string(),
                    choose_with: key,
                },
                reason => reason,
            };
            Rejection::of_data_set(Source::file(self.shown(relative)), reason)
        })
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
            return Reason::OutsideFolder {
                leads_to: meant.display().to_string(),
            };
        }
        Reason::MissingFile {
            link_to: fs::read_link(path).ok().map(|to| to.display().to_string()),
        }
    }

    /// Returns the names of the files at the top, sorted.
    pub fn top(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Lists everything in the folder and below it.
    pub fn search(&self) -> Contents {
        let mut search = Search {
            folder: self,
            found: Contents::default(),
            waiting: vec![PathBuf::new()],
            seen: HashSet::from([self.root.clone()]),
            hidden: Vec::new(),
        };
        while let Some(below) = search.waiting.pop() {
            if let Err(e) = search.list(&below) {
                let reason = Reason::UnreadableFile { error: e.to_string() };
                search
                    .found
                    .refused
                    .push(Rejection::of_data_set(Source::file(self.shown(below)), reason));
            }
        }
        search.finish()
    }
}

struct Search<'a> {
    folder: &'a Folder,
    found: Contents,
    /// Folders yet to be listed.
    waiting: Vec<PathBuf>,
    /// Folders without links, because links may form cycles.
    seen: HashSet<PathBuf>,
    hidden: Vec<PathBuf>,
}

impl Search<'_> {
    fn list(&mut self, below: &Path) -> std::io::Result<()> {
        for entry in fs::read_dir(self.folder.root.join(below))? {
            let entry = entry?;
            let relative = below.join(entry.file_name());
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                self.hidden.push(relative);
            } else if entry.file_type()?.is_file() {
                self.found.files.push(relative);
            } else {
                self.enter(relative, entry.file_type()?.is_symlink());
            }
        }
        Ok(())
    }

    /// Enters a folder or the target of a link.
    fn enter(&mut self, relative: PathBuf, is_link: bool) {
        let real = match self.folder.root.join(&relative).canonicalize() {
            Ok(real) if real.is_dir() => real,
            _ => return self.found.files.push(relative), // also a broken link, which is reported where it is named
        };
        let inside = real.starts_with(&self.folder.root);
        if is_link && inside {
            let name = relative.display();
            self.found.notes.push(format!(
                "{name} links to a folder of this data set, which is searched at its own path"
            ));
        } else if is_link && !self.folder.follow_links {
            let reason = Reason::OutsideFolder {
                leads_to: real.display().to_string(),
            };
            let source = Source::file(self.folder.shown(&relative));
            self.found
                .refused
                .push(Rejection::of_clip(relative.display().to_string(), source, reason));
        } else if self.seen.insert(real) {
            self.waiting.push(relative);
        }
    }

    fn finish(self) -> Contents {
        let Search {
            mut found, mut hidden, ..
        } = self;
        hidden.retain(|path| Media::of(path).is_some());
        if !hidden.is_empty() {
            hidden.sort();
            found
                .notes
                .push(format!("hidden files are ignored: {}", super::some_of(&hidden)));
        }
        found.files.sort();
        found.refused.sort_by(|a, b| a.source.cmp(&b.source));
        found.notes.sort();
        found
    }
}

/// Resolves `.` and `..` lexically, for files that do not exist.
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
