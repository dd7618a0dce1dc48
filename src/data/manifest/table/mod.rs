//! Tables in four formats, as rows of cells. What a column means is not known here.

mod delimited;
mod json;
mod parquet;

use std::collections::HashMap;
use std::path::Path;

use super::super::reason::Reason;
use super::text;

pub(super) enum Format {
    /// Comma, semicolon or tab between fields, whichever the header has most of.
    Delimited,
    /// A JSON object on every line.
    JsonLines,
    /// One list of objects, or one object from clip to caption.
    Json,
    Parquet,
}

impl Format {
    pub fn of(path: &Path) -> Option<Format> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" | "tsv" => Some(Format::Delimited),
            "jsonl" | "ndjson" => Some(Format::JsonLines),
            "json" => Some(Format::Json),
            "parquet" => Some(Format::Parquet),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub columns: Vec<String>,
    /// Columns without cells here, in words for messages.
    pub unread: Vec<String>,
    pub rows: Vec<Result<Row, Fault>>,
}

#[derive(Debug)]
pub(super) struct Row {
    /// The line where the row starts; in parquet, the row's number. From 1.
    pub line: usize,
    /// In the order of the table's columns; may end early.
    pub cells: Vec<Cell>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Text(String),
    Null,
    NotUtf8 {
        byte: usize,
    },
    /// Its type, in words.
    Other(&'static str),
}

impl Cell {
    fn from_bytes(bytes: &[u8]) -> Cell {
        match text::text(bytes) {
            Ok(text) => Cell::Text(text.to_owned()),
            Err(Reason::NotUtf8 { byte }) => Cell::NotUtf8 { byte },
            Err(_) => Cell::Other("bytes"),
        }
    }
}

/// What is wrong with a table, or with one row of it.
#[derive(Debug)]
pub(super) struct Fault {
    pub line: Option<usize>,
    pub reason: Reason,
}

impl Fault {
    fn row(line: usize, error: impl ToString) -> Fault {
        Fault {
            line: Some(line),
            reason: Reason::BadRow {
                error: error.to_string(),
            },
        }
    }
}

impl From<Reason> for Fault {
    fn from(reason: Reason) -> Fault {
        Fault { line: None, reason }
    }
}

/// Reads a table. Of the columns only the `wanted` ones need to be there, where leaving out the
/// others saves reading them.
pub(super) fn read(path: &Path, format: Format, wanted: &dyn Fn(&str) -> bool) -> Result<Table, Fault> {
    match format {
        Format::Delimited => delimited::read(&text::read(path)?),
        Format::JsonLines => Ok(json::read_lines(&text::read(path)?)),
        Format::Json => json::read(&text::read(path)?),
        Format::Parquet => parquet::read(path, wanted),
    }
}

/// Gathers rows that name their cells, each perhaps others.
#[derive(Default)]
struct Gathered {
    table: Table,
    places: HashMap<String, usize>,
}

impl Gathered {
    fn row(&mut self, line: usize, cells: impl IntoIterator<Item = (String, Cell)>) {
        let mut row = Row {
            line,
            cells: Vec::new(),
        };
        for (name, cell) in cells {
            let next = self.places.len();
            let place = *self.places.entry(name.clone()).or_insert(next);
            if place == next {
                self.table.columns.push(name);
            }
            if row.cells.len() <= place {
                row.cells.resize(place + 1, Cell::Null);
            }
            row.cells[place] = cell;
        }
        self.table.rows.push(Ok(row));
    }
}
