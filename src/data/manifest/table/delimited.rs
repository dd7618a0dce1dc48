//! CSV and TSV, with a header.

use csv::{ByteRecord, ReaderBuilder};

use super::{Cell, Row, Table, TableError};

pub(super) fn read(bytes: &[u8]) -> Result<Table, TableError> {
    let header = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let frequency = |delimiter: u8| header.iter().filter(|&&b| b == delimiter).count();
    let delimiter = [b'\t', b';', b',']
        .into_iter()
        .max_by_key(|&d| frequency(d))
        .unwrap_or(b','); // last of equals
    let mut reader = ReaderBuilder::new()
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(bytes);

    let header = reader.byte_headers().map_err(|e| TableError::row(1, e))?;
    let name = |field: &[u8]| String::from_utf8_lossy(field).trim().to_owned();
    let mut table = Table {
        columns: header.iter().map(name).collect(),
        ..Table::default()
    };

    let (mut counted, mut line) = (0, 1); // newlines counted so far
    let mut record = ByteRecord::new();
    while reader
        .read_byte_record(&mut record)
        .map_err(|e| TableError::row(line, e))?
    {
        // The reader's own line numbers do not count blank lines before a record.
        let mut start = record
            .position()
            .map_or(0, |p| p.byte() as usize)
            .clamp(counted, bytes.len());
        start += bytes[start..]
            .iter()
            .take_while(|b| b.is_ascii_whitespace() && **b != delimiter)
            .count();
        line += bytes[counted..start].iter().filter(|&&b| b == b'\n').count();
        counted = start;
        table.rows.push(row(&record, line, table.columns.len()));
    }
    if let Some(Ok(last)) = table.rows.last()
        && unclosed(bytes, last)
    {
        let line = last.line;
        table.rows.push(Err(TableError::row(
            line,
            "a quote that opens here is never closed; rows below it are lost",
        )));
    }
    Ok(table)
}

fn row(record: &ByteRecord, line: usize, columns: usize) -> Result<Row, TableError> {
    match record.len() == columns {
        true => Ok(Row {
            line,
            cells: record.iter().map(Cell::from_bytes).collect(),
        }),
        false => Err(TableError::row(
            line,
            format!(
                "{} fields where the header has {columns}; quote a caption that contains the delimiter",
                record.len()
            ),
        )),
    }
}

/// Detects a quoted field without an end, into which the reader takes the rest of the file.
fn unclosed(bytes: &[u8], last: &Row) -> bool {
    let odd = bytes.iter().filter(|&&b| b == b'"').count() % 2 == 1;
    odd && last
        .cells
        .iter()
        .any(|cell| matches!(cell, Cell::Text(text) if text.contains('\n')))
}
