//! JSON and JSON lines.

use serde_json::{Map, Value};

use super::super::super::reason::Reason;
use super::super::text;
use super::{Cell, RowBuilder, Table, TableError};

/// Reads an object per line; blank lines are skipped.
pub(super) fn read_lines(bytes: &[u8]) -> Table {
    let mut gathered = RowBuilder::default();
    for (n, line) in text::lines(bytes).into_iter().enumerate() {
        let number = n + 1;
        let parsed = match line {
            Ok("") => continue,
            Ok(line) => object(line, number),
            Err(reason) => Err(TableError {
                line: Some(number),
                reason,
            }),
        };
        match parsed {
            Ok(object) => gathered.row(number, cells(object)),
            Err(fault) => gathered.table.rows.push(Err(fault)),
        }
    }
    gathered.table
}

fn object(line: &str, number: usize) -> Result<Map<String, Value>, TableError> {
    match serde_json::from_str(line).map_err(|e| TableError::row(number, without_line(&e)))? {
        Value::Object(object) => Ok(object),
        other => Err(TableError::row(
            number,
            format!("expected an object, found {}", kind(&other)),
        )),
    }
}

/// Reads a list of objects, or an object whose keys are clips: `{"a.mp4": "caption"}`.
pub(super) fn read(bytes: &[u8]) -> Result<Table, TableError> {
    let text = text::text(bytes).map_err(|reason| {
        // Reported by line and byte of the line, as for every other text.
        let bad = |line: Result<&str, _>| line.err();
        let place = text::lines(bytes)
            .into_iter()
            .enumerate()
            .find_map(|(n, line)| Some((n + 1, bad(line)?)));
        place.map_or(reason.into(), |(line, reason)| TableError {
            line: Some(line),
            reason,
        })
    })?;
    let value = serde_json::from_str(text).map_err(|e| TableError::row(e.line(), without_line(&e)))?;
    let lines = lines_of_elements(bytes);
    let line = |n: usize| lines.get(n).copied().unwrap_or(1);
    let mut gathered = RowBuilder::default();
    match value {
        Value::Array(rows) => {
            for (n, row) in rows.into_iter().enumerate() {
                match row {
                    Value::Object(object) => gathered.row(line(n), cells(object)),
                    other => {
                        let error = format!("expected an object, found {}", kind(&other));
                        gathered.table.rows.push(Err(TableError::row(line(n), error)));
                    }
                }
            }
        }
        Value::Object(captions) => {
            if captions.len() < lines.len() {
                return Err(TableError::from(repeated_key()));
            }
            for (n, (clip, caption)) in captions.into_iter().enumerate() {
                let file_name = ("file_name".to_owned(), Cell::Text(clip));
                match caption {
                    Value::Object(object) => gathered.row(line(n), cells(object).chain([file_name])),
                    caption => gathered.row(line(n), [file_name, ("text".to_owned(), cell(caption))]),
                }
            }
        }
        other => {
            return Err(TableError::row(
                1,
                format!("expected a list of objects, found {}", kind(&other)),
            ));
        }
    }
    Ok(gathered.table)
}

fn cells(object: Map<String, Value>) -> impl Iterator<Item = (String, Cell)> {
    object.into_iter().map(|(name, value)| (name, cell(value)))
}

fn cell(value: Value) -> Cell {
    match value {
        Value::String(text) => Cell::Text(text),
        Value::Null => Cell::Null,
        other => Cell::Other(kind(&other)),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Rejects repeated keys: the parser keeps the last of them, and the other captions would be lost silently.
fn repeated_key() -> Reason {
    Reason::BadRow {
        error: "a clip is a key more than once; write a list of objects instead".into(),
    }
}

/// Returns the parser's message without its line, which the source contains.
fn without_line(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let what = message.split(" at line ").next().unwrap_or_default();
    format!("{what} at column {}", error.column())
}

/// Returns the line on which each element of the outermost list or object starts, in text that has parsed.
fn lines_of_elements(json: &[u8]) -> Vec<usize> {
    let (mut starts, mut line, mut depth) = (Vec::new(), 1, 0usize);
    let (mut in_string, mut escaped, mut awaited) = (false, false, false);
    for &byte in json {
        if byte == b'\n' {
            line += 1;
        }
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        if byte.is_ascii_whitespace() {
            continue;
        }
        if awaited && !matches!(byte, b']' | b'}') {
            starts.push(line);
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        awaited = depth == 1 && (byte == b',' || (matches!(byte, b'[' | b'{') && starts.is_empty())) && !in_string;
    }
    starts
}
