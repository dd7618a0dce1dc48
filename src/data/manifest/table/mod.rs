//! Tables in four formats, as rows of cells. The meaning of columns is defined elsewhere.

mod delimited;
mod json;
mod parquet;

use std::collections::HashMap;
use std::path::Path;

use super::super::reason::Reason;
use super::text;

pub(super) enum Format {
    /// Comma, semicolon or tab between fields, whichever is most frequent in the header.
    Delimited,
    /// A JSON object per line.
    JsonLines,
    /// A list of objects, or one object from clip to caption.
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
    /// Columns that were not read, described for messages.
    pub unread: Vec<String>,
    pub rows: Vec<Result<Row, TableError>>,
}

#[derive(Debug)]
pub(super) struct Row {
    /// Line where the row starts, from 1; in parquet, the row's number.
    pub line: usize,
    /// Cells in the order of the table's columns; may be fewer.
    pub cells: Vec<Cell>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Text(String),
    Null,
    NotUtf8 {
        byte: usize,
    },
    /// A value of another type, named here.
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

/// A problem with a table, or with one row of it.
#[derive(Debug)]
pub(super) struct TableError {
    pub line: Option<usize>,
    pub reason: Reason,
}

impl TableError {
    fn row(line: usize, error: impl ToString) -> TableError {
        TableError {
            line: Some(line),
            reason: Reason::BadRow {
                error: error.to_string(),
            },
        }
    }
}

impl From<Reason> for TableError {
    fn from(reason: Reason) -> TableError {
        TableError { line: None, reason }
    }
}

/// Reads a table. Only the `wanted` columns are required, where skipping the others saves reading them.
pub(super) fn read(path: &Path, format: Format, wanted: &dyn Fn(&str) -> bool) -> Result<Table, TableError> {
    match format {
        Format::Delimited => delimited::read(&text::read(path)?),
        Format::JsonLines => Ok(json::read_lines(&text::read(path)?)),
        Format::Json => json::read(&text::read(path)?),
        Format::Parquet => parquet::read(path, wanted),
    }
}

/// Collects rows that name their cells, possibly different ones in each row.
#[derive(Default)]
struct RowBuilder {
    table: Table,
    places: HashMap<String, usize>,
}

impl RowBuilder {
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
