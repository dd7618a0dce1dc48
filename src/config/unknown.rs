//! Translates serde's messages into the terms of YAML.

/// Renamed keys, old and new.
const RENAMED: &[(&str, &str)] = &[
    ("first_frame", "first_frame_conditioning_p"),
    ("keep", "activation_policy"),
    ("max_nonfinite", "max_consecutive_nonfinite"),
    ("on_bad_clip", "on_invalid_clip"),
];

/// Parses "unknown field `lr_rate`, expected one of `lr`, ..." and returns the key and a message with the nearest known
/// key.
pub fn explain(message: &str) -> Option<(String, String)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (key, expected) = rest.split_once('`')?;
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    let renamed = RENAMED.iter().find(|(old, new)| *old == key && known.contains(new));
    if let Some((_, new)) = renamed {
        return Some((key.to_string(), format!("was renamed to '{new}'")));
    }
    let text = match nearest(key, &known) {
        Some(near) => format!("unknown key; did you mean '{near}'?"),
        None if known.is_empty() => "unknown key; this mapping has no keys".to_string(),
        None => format!("unknown key; the keys here are {}", known.join(", ")),
    };
    Some((key.to_string(), text))
}

fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let key = key.to_lowercase().replace('-', "_");
    known
        .iter()
        .map(|name| (strsim::jaro_winkler(&key, name), *name))
        .filter(|(likeness, name)| *likeness > 0.75 || name.contains(key.as_str()) || key.contains(name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// "invalid type: string "x", expected usize" -> "expected a whole number of at least 0, found string "x"".
pub fn in_plain_words(message: &str) -> String {
    let found = ["invalid type: ", "invalid value: ", "invalid length "];
    let Some((found, expected)) = found
        .iter()
        .find_map(|start| message.strip_prefix(start))
        .and_then(|rest| rest.rsplit_once(", expected "))
    else {
        return match message
            .strip_prefix("unknown variant `")
            .and_then(|rest| rest.split_once('`'))
        {
            Some((found, rest)) => {
                let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
                match nearest(found, &known) {
                    Some(near) => format!("'{found}' is not one of {}; did you mean '{near}'?", known.join(", ")),
                    None => format!("'{found}' is not one of {}", known.join(", ")),
                }
            }
            None => message.to_string(),
        };
    };
    let expected = match expected {
        "usize" | "u64" | "u32" => "a whole number of at least 0",
        "i64" | "i32" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a string" | "path string" => "a text",
        "a sequence" => "a list",
        other if other.starts_with("struct ") => "a mapping of keys",
        other => other,
    };
    let found = match found.split_once(' ') {
        Some(("integer" | "floating", rest)) => rest.trim_start_matches("point ").to_string(),
        Some(("string", rest)) => format!("the text {rest}"),
        Some(("boolean", rest)) => rest.to_string(),
        _ => match found {
            "map" => "a mapping".to_string(),
            "sequence" => "a list".to_string(),
            other => other.to_string(),
        },
    };
    format!("expected {expected}, found {}", found.replace('`', ""))
}
