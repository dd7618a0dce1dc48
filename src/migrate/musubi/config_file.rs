//! `--config_file`: flags in a TOML file, inserted before those of the command.

use toml::{Table, Value};

use super::super::Source;
use super::super::document::Document;
use super::super::flags::{Flag, Launch};

/// Inserts the file's flags before those of the command, of which the last counts. Tables are merged, because their
/// names have no meaning.
///
/// # Errors
/// Fails for an unreadable file, and for a value that no flag can have.
pub fn read(source: &Source, launch: &mut Launch, document: &mut Document) -> Result<(), String> {
    let Some(at) = launch.flags.iter().rposition(|flag| flag.name == "config_file") else {
        return Ok(());
    };
    let flag = launch.flags.remove(at);
    let [file] = &flag.values[..] else {
        return Err(format!("{}: takes one file", flag.typed()));
    };
    let file = match file.ends_with(".toml") {
        true => file.clone(),
        false => format!("{file}.toml"),
    };
    let text = source
        .read(&file)
        .map_err(|message| format!("--config_file: {message}"))?;
    let table: Table = text
        .parse()
        .map_err(|error| format!("--config_file: {file}: {error}"))?;
    let mut flags = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(section) => {
                for (key, value) in section {
                    flags.extend(self::flag(&file, key, value)?);
                }
            }
            value => flags.extend(self::flag(&file, key, value)?),
        }
    }
    document.remark(flag.typed(), "its flags are read; those of the command go before them");
    launch.flags.splice(..0, flags);
    Ok(())
}

/// Converts a key to its flag; None for a switch that is off.
fn flag(file: &str, name: String, value: Value) -> Result<Option<Flag>, String> {
    let plain = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(_) | Value::Float(_) => Some(value.to_string()),
        _ => None,
    };
    let values = match &value {
        Value::Boolean(false) => return Ok(None),
        Value::Boolean(true) => Some(Vec::new()),
        Value::Array(items) => items.iter().map(plain).collect(),
        value => plain(value).map(|text| vec![text]),
    };
    match values {
        Some(values) => Ok(Some(Flag { name, values })),
        None => Err(format!(
            "--config_file: {file}: {name}: is not a value of a flag: {value}"
        )),
    }
}
