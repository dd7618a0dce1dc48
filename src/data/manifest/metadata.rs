//! `metadata.csv`, `.jsonl`, `.json` or `.parquet`: a row for each clip, with its name and its caption.
//! Other columns are of no concern here. A name is relative to the table's folder, or else to the
//! data set's.

use std::path::{Path, PathBuf};

use super::super::dataset::Config;
use super::super::refusal::{Reason, Refusal, Source};
use super::folder::Folder;
use super::table::{self, Cell, Format, Row, Table};
use super::{Listing, Named, Said};

/// The usual names of the columns; the first of them that is there is taken.
const CLIPS: [&str; 9] = [
    "file_name",
    "video",
    "path",
    "video_path",
    "file_path",
    "filename",
    "file",
    "media_path",
    "image",
];
const CAPTIONS: [&str; 4] = ["text", "caption", "prompt", "description"];

/// Whether a path is named as a table of metadata.
pub(super) fn is_one(path: &Path) -> bool {
    let stem = path
        .file_stem()
        .is_some_and(|stem| stem.eq_ignore_ascii_case("metadata"));
    stem && Format::of(path).is_some()
}

pub(super) fn read(config: &Config, folder: &Folder, listing: &mut Listing) {
    let tables = match tables(config, folder, listing) {
        Ok(tables) => tables,
        Err(refusal) => return listing.refuse(refusal),
    };
    let mut named = Vec::new();
    for table in &tables {
        match Rows::open(config, folder, table, listing) {
            Ok(rows) => rows.list(config, folder, listing, &mut named),
            Err(refusal) => listing.refuse(refusal),
        }
    }
    let names: Vec<_> = tables.iter().map(|t| t.display().to_string()).collect();
    listing.note_unnamed(folder, &names.join(", "), &named);
}

/// The named table; or the one at the top; or those in subfolders, one in each.
fn tables(
    config: &Config,
    folder: &Folder,
    listing: &mut Listing,
) -> Result<Vec<PathBuf>, Refusal> {
    if let Some(name) = &config.metadata {
        return Ok(vec![name.clone()]);
    }
    let mut found: Vec<_> = folder
        .top()
        .into_iter()
        .map(PathBuf::from)
        .filter(|p| is_one(p))
        .collect();
    if found.is_empty() {
        let contents = folder.search();
        listing.items.extend(contents.refused.into_iter().map(Err));
        found = contents.files;
        found.retain(|path| is_one(path));
    }
    let refuse = |place: &Path, reason| {
        Err(Refusal::of_data_set(
            Source::file(folder.shown(place)),
            reason,
        ))
    };
    if let Some(two) = found
        .windows(2)
        .find(|two| two[0].parent() == two[1].parent())
    {
        let found = two.iter().map(|path| path.display().to_string()).collect();
        let place = two[0].parent().unwrap_or(Path::new(""));
        return refuse(
            place,
            Reason::Ambiguous {
                found,
                choose_with: "metadata",
            },
        );
    }
    if found.is_empty() {
        let looked_for = "metadata.csv, .jsonl, .json, .parquet".into();
        return refuse(
            Path::new(""),
            Reason::NoManifest {
                looked_for,
                choose_with: "metadata",
            },
        );
    }
    Ok(found)
}

/// A table whose columns are known.
struct Rows {
    /// Relative to the data set's folder.
    name: PathBuf,
    shown: PathBuf,
    table: Table,
    clip: usize,
    caption: usize,
}

impl Rows {
    fn open(
        config: &Config,
        folder: &Folder,
        name: &Path,
        listing: &mut Listing,
    ) -> Result<Rows, Refusal> {
        let shown = folder.shown(name);
        let refuse = |reason| {
            let reason = match reason {
                Reason::MissingFile { link_to: None } => Reason::NoManifest {
                    looked_for: name.display().to_string(),
                    choose_with: "metadata",
                },
                reason => reason,
            };
            Refusal::of_data_set(Source::file(&shown), reason)
        };
        let Some(format) = Format::of(name) else {
            let error = "its name must end in .csv, .tsv, .jsonl, .json or .parquet".into();
            return Err(refuse(Reason::UnreadableFile { error }));
        };
        let path = folder.file(name).map_err(refuse)?;
        let wanted = |column: &str| {
            let usual = || {
                CLIPS
                    .iter()
                    .chain(&CAPTIONS)
                    .any(|c| c.eq_ignore_ascii_case(column))
            };
            let named = [&config.video_column, &config.caption_column];
            usual()
                || named
                    .into_iter()
                    .flatten()
                    .any(|c| c.eq_ignore_ascii_case(column))
        };
        let table = table::read(&path, format, &wanted).map_err(|fault| {
            let source = Source {
                file: shown.clone(),
                line: fault.line,
            };
            Refusal::of_data_set(source, fault.reason)
        })?;
        let mut choose = |named: &Option<String>, usual: &[&str], what, key| {
            column(&table, named.as_deref(), usual, what, key, &shown, listing).map_err(refuse)
        };
        let clip = choose(
            &config.video_column,
            &CLIPS,
            "names of the clips",
            "video_column",
        );
        let caption = choose(
            &config.caption_column,
            &CAPTIONS,
            "captions",
            "caption_column",
        );
        let (clip, caption) = (clip?, caption?);
        Ok(Rows {
            name: name.to_owned(),
            shown,
            table,
            clip,
            caption,
        })
    }

    fn list(
        &self,
        config: &Config,
        folder: &Folder,
        listing: &mut Listing,
        named: &mut Vec<PathBuf>,
    ) {
        let bases = [self.name.parent().unwrap_or(Path::new("")), Path::new("")];
        for row in &self.table.rows {
            let row = match row {
                Ok(row) => row,
                Err(fault) => {
                    let source = Source {
                        file: self.shown.clone(),
                        line: fault.line,
                    };
                    listing.refuse(Refusal::of_clip("", source, fault.reason.clone()));
                    continue;
                }
            };
            let source = Source::line(&self.shown, row.line);
            let name = match self.text(row, self.clip) {
                Ok(name) => name.trim(),
                Err(reason) => {
                    listing.refuse(Refusal::of_clip("", source, reason));
                    continue;
                }
            };
            named.extend(bases.map(|base| base.join(name)));
            let said = match self.text(row, self.caption) {
                Ok(text) => Ok(Said {
                    text: one_line(text),
                    source: source.clone(),
                }),
                Err(reason) => Err(Refusal::of_clip(name, source.clone(), reason)),
            };
            listing.pair(
                config,
                folder,
                Named {
                    name,
                    bases: &bases,
                    source,
                },
                said,
            );
        }
    }

    /// The text of a cell; a cell without a value is empty text.
    fn text<'a>(&self, row: &'a Row, column: usize) -> Result<&'a str, Reason> {
        match row.cells.get(column) {
            None | Some(Cell::Null) => Ok(""),
            Some(Cell::Text(text)) => Ok(text),
            Some(Cell::NotUtf8 { byte }) => Err(Reason::NotUtf8 { byte: *byte }),
            Some(Cell::Other(found)) => Err(Reason::BadCell {
                column: self.table.columns[column].clone(),
                found: found.to_string(),
            }),
        }
    }
}

/// The column that the config names, or else the first of the usual ones.
fn column(
    table: &Table,
    named: Option<&str>,
    usual: &[&str],
    what: &str,
    key: &'static str,
    shown: &Path,
    listing: &mut Listing,
) -> Result<usize, Reason> {
    let place = |name: &str| {
        let exact = table.columns.iter().position(|c| c == name);
        exact.or_else(|| {
            table
                .columns
                .iter()
                .position(|c| c.eq_ignore_ascii_case(name))
        })
    };
    let mut found: Vec<_> = match named {
        Some(name) => place(name).into_iter().collect(),
        None => usual.iter().filter_map(|name| place(name)).collect(),
    };
    found.dedup();
    let Some(&first) = found.first() else {
        let wanted = named.map_or(what.to_owned(), |name| format!("{what}, `{name}`"));
        let columns = table.columns.iter().cloned();
        let found = columns.chain(table.unread.iter().cloned()).collect();
        return Err(Reason::NoColumn {
            wanted,
            found,
            choose_with: key,
        });
    };
    if found.len() > 1 {
        let rest: Vec<_> = found[1..]
            .iter()
            .map(|&i| format!("`{}`", table.columns[i]))
            .collect();
        let note = format!(
            "{}: the {what} are taken from `{}`, not from {}; `{key}` chooses another",
            shown.display(),
            table.columns[first],
            rest.join(", ")
        );
        listing.notes.push(note);
    }
    Ok(first)
}

fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}
