//! Parquet: only the wanted text columns are read, however large the others are.

use std::fs::File;
use std::path::Path;

use parquet::basic::{Repetition, Type as Physical};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use super::super::super::reason::Reason;
use super::{Cell, Row, Table, TableError};
use crate::process::panics;

pub(super) fn read(path: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Table, TableError> {
    let unreadable = |error: String| TableError::from(Reason::UnreadableFile { error });
    let file = File::open(path).map_err(|e| unreadable(e.to_string()))?;
    // The reader checks most of a file, but panics on some damaged ones.
    match panics::contained(|| table(file, wanted)) {
        Some(table) => table.map_err(|e| unreadable(e.to_string())),
        None => Err(unreadable("damaged parquet; write it again".into())),
    }
}

fn table(file: File, wanted: &dyn Fn(&str) -> bool) -> Result<Table, ParquetError> {
    let reader = SerializedFileReader::new(file)?;
    let schema = reader.metadata().file_metadata().schema();
    let mut table = Table::default();
    let mut read = Vec::new();
    for field in schema.get_fields() {
        let name = field.name().to_owned();
        match (holds_text(field), wanted(&name)) {
            (true, true) => {
                table.columns.push(name);
                read.push(field.clone());
            }
            (true, false) => table.unread.push(name),
            (false, _) => table.unread.push(format!("{name} (not text)")),
        }
    }
    if read.is_empty() {
        return Ok(table);
    }
    let schema = Type::group_type_builder(schema.name()).with_fields(read).build()?;
    for (n, row) in reader.get_row_iter(Some(schema))?.enumerate() {
        let cells = row?.into_columns().into_iter().map(|(_, field)| cell(field)).collect();
        table.rows.push(Ok(Row { line: n + 1, cells }));
    }
    Ok(table)
}

fn holds_text(field: &Type) -> bool {
    let single = field.get_basic_info().repetition() != Repetition::REPEATED;
    single && field.is_primitive() && field.get_physical_type() == Physical::BYTE_ARRAY
}

fn cell(field: Field) -> Cell {
    match field {
        Field::Str(text) => Cell::Text(text),
        Field::Null => Cell::Null,
        Field::Bytes(bytes) => Cell::from_bytes(bytes.data()),
        _ => Cell::Other("no text"),
    }
}
