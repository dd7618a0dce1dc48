//! `metadata.csv`, `.jsonl`, `.json` or `.parquet`: a row for each clip, with its name and its caption. Other columns
//! are ignored. A name is relative to the table's folder, or else to the data set's.

use std::path::{Path, PathBuf};

use super::super::dataset::Config;
use super::super::reason::Reason;
use super::super::rejection::{Rejection, Source};
use super::column::Column;
use super::folder::Folder;
use super::table::{self, Cell, Format, Row, Table, TableError};
use super::{Listing, Named, RawCaption};

/// Checks whether a path is named like a table of metadata.
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
            Err(refusals) => listing.items.extend(refusals.into_iter().map(Err)),
        }
    }
    let names: Vec<_> = tables.iter().map(|t| t.display().to_string()).collect();
    listing.note_unnamed(folder, &names.join(", "), &named);
}

/// Returns the named table; or the one at the top; or those in subfolders, one in each.
fn tables(config: &Config, folder: &Folder, listing: &mut Listing) -> Result<Vec<PathBuf>, Rejection> {
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
    let refuse = |place: &Path, reason| Err(Rejection::of_data_set(Source::file(folder.shown(place)), reason));
    if let Some(two) = found.windows(2).find(|two| two[0].parent() == two[1].parent()) {
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

/// A table with known columns.
struct Rows {
    /// Path relative to the data set's folder.
    name: PathBuf,
    shown: PathBuf,
    table: Table,
    clip: usize,
    caption: usize,
}

impl Rows {
    /// Opens a table; on failure, returns all problems with it as a whole.
    fn open(config: &Config, folder: &Folder, name: &Path, listing: &mut Listing) -> Result<Rows, Vec<Rejection>> {
        let shown = folder.shown(name);
        let refuse = |reason| Rejection::of_data_set(Source::file(&shown), reason);
        let Some(format) = Format::of(name) else {
            let error = "its name must end in .csv, .tsv, .jsonl, .json or .parquet".into();
            return Err(vec![refuse(Reason::UnreadableFile { error })]);
        };
        let path = folder.manifest(name, "metadata").map_err(|refusal| vec![refusal])?;
        let wanted = |column: &str| [Column::Clip, Column::Caption].iter().any(|c| c.may_be(column, config));
        let table = table::read(&path, format, &wanted).map_err(|fault| {
            let source = Source {
                file: shown.clone(),
                line: fault.line,
            };
            vec![Rejection::of_data_set(source, fault.reason)]
        })?;
        let none = || {
            refuse(Reason::BadRow {
                error: "it has no readable row".into(),
            })
        };
        if table.columns.is_empty() && table.unread.is_empty() {
            return Err([faults(&table, &shown), vec![none()]].concat());
        }
        let named = |note| format!("{}: {note}", name.display());
        match (Column::Clip.find(&table, config), Column::Caption.find(&table, config)) {
            (Ok(_), Ok(_)) if table.rows.is_empty() => Err(vec![none()]), // truncated after its header
            (Ok(clip), Ok(caption)) => {
                listing
                    .notes
                    .extend(clip.note.into_iter().chain(caption.note).map(named));
                let (clip, caption) = (clip.place, caption.place);
                Ok(Rows {
                    name: name.to_owned(),
                    shown,
                    table,
                    clip,
                    caption,
                })
            }
            (clip, caption) => {
                let columns = clip.err().into_iter().chain(caption.err()).map(refuse);
                Err(columns.chain(faults(&table, &shown)).collect())
            }
        }
    }

    fn list(&self, config: &Config, folder: &Folder, listing: &mut Listing, named: &mut Vec<PathBuf>) {
        let bases = [self.name.parent().unwrap_or(Path::new("")), Path::new("")];
        for row in &self.table.rows {
            let row = match row {
                Ok(row) => row,
                Err(fault) => {
                    listing.refuse(refuse_row(&self.shown, fault));
                    continue;
                }
            };
            let source = Source::line(&self.shown, row.line);
            let name = match self.text(row, self.clip) {
                Ok(name) => name.trim(),
                Err(reason) => {
                    listing.refuse(Rejection::of_clip("", source, reason));
                    continue;
                }
            };
            named.extend(bases.map(|base| base.join(name)));
            let said = match self.text(row, self.caption) {
                Ok(text) => Ok(RawCaption {
                    text: one_line(text),
                    source: source.clone(),
                }),
                Err(reason) => Err(Rejection::of_clip(name, source.clone(), reason)),
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

    /// Returns the text of a cell; a cell without a value is empty text.
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

/// Returns rejections for the rows that could not be read.
fn faults(table: &Table, shown: &Path) -> Vec<Rejection> {
    let bad = table.rows.iter().filter_map(|row| row.as_ref().err());
    bad.map(|fault| refuse_row(shown, fault)).collect()
}

fn refuse_row(shown: &Path, fault: &TableError) -> Rejection {
    let source = Source {
        file: shown.to_owned(),
        line: fault.line,
    };
    Rejection::of_clip("", source, fault.reason.clone())
}

fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}
