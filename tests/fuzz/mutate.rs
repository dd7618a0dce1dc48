//! Corruption of files: random changes of bytes, text, numbers, JSON and safetensors headers; all from a seed.

use serde_json::{Value, json};
use vtrain::rng::Rng;

/// A whole number in 0..n.
pub fn below(rng: &mut Rng, n: usize) -> usize {
    rng.randint(0, n as i64, 1)[0] as usize
}

/// Spoils a file by what it is, as its name says.
pub fn spoil(name: &str, original: &[u8], rng: &mut Rng) -> Vec<u8> {
    match name.rsplit('.').next().unwrap_or_default() {
        "safetensors" => safetensors(original, rng),
        "json" if below(rng, 3) == 0 => json(original, rng),
        "json" | "jsonl" | "yaml" | "toml" | "sh" | "txt" | "csv" | "tsv" => text(original, rng),
        _ => match below(rng, 8) {
            0 => flood(original, rng),
            _ => mutate(original, rng),
        },
    }
}

/// One to nine small accidents of bytes.
pub fn mutate(original: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=below(rng, 8) {
        if bytes.is_empty() {
            break;
        }
        let at = below(rng, bytes.len());
        let end = (at + 1 + below(rng, 16)).min(bytes.len());
        match below(rng, 6) {
            0 => bytes[at] ^= 1 << below(rng, 8),
            1 => bytes[at] = below(rng, 256) as u8,
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                let to = below(rng, bytes.len());
                bytes.splice(to..to, copy);
            }
            4 => bytes[at..end].fill(0xff),
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// One accident, mostly such that the text stays of its format and says something else.
fn text(original: &[u8], rng: &mut Rng) -> Vec<u8> {
    match below(rng, 8) {
        0 | 1 => mutate(original, rng),
        2 | 3 => miscount(original, rng),
        4 | 5 => overstate(original, rng),
        6 => misspell(original, rng),
        _ => flood(original, rng),
    }
}

/// One digit becomes another, goes, or is followed by up to four zeros.
fn miscount(original: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    if let Some(at) = one_of(&bytes, u8::is_ascii_digit, rng) {
        match below(rng, 3) {
            0 => bytes[at] = b'0' + below(rng, 10) as u8,
            1 => drop(bytes.remove(at)),
            _ => drop(bytes.splice(at + 1..at + 1, b"0000".iter().copied().take(1 + below(rng, 4)))),
        }
    }
    bytes
}

/// Numbers that programs stumble over.
const EXTREME: [&str; 14] = [
    "0",
    "-1",
    "1",
    "16777216",
    "2147483648",
    "4294967295",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e-320",
    "1e999",
    ".nan",
    "-.inf",
];

/// A whole number becomes one that is out of all proportion.
fn overstate(original: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    if let Some(at) = one_of(&bytes, u8::is_ascii_digit, rng) {
        let is_number = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
        let start = bytes[..at]
            .iter()
            .rposition(|byte| !is_number(byte))
            .map_or(0, |at| at + 1);
        let length = bytes[at..].iter().position(|byte| !is_number(byte));
        let end = length.map_or(bytes.len(), |length| at + length);
        bytes.splice(start..end, EXTREME[below(rng, EXTREME.len())].bytes());
    }
    bytes
}

/// A letter becomes another: names and number formats change.
pub fn misspell(original: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    if let Some(at) = one_of(&bytes, u8::is_ascii_alphabetic, rng) {
        bytes[at] = b"ABFQaklopqsv_."[below(rng, 14)];
    }
    bytes
}

/// One byte stands somewhere many times: depths, lengths and lines that nobody writes.
fn flood(original: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    let at = below(rng, bytes.len() + 1);
    let byte = b"[{(\"'\\$ \t\n,:-&\0\xff9"[below(rng, 17)];
    let count = 1 << below(rng, 17);
    bytes.splice(at..at, std::iter::repeat_n(byte, count));
    bytes
}

/// A value of a JSON document becomes another, a key goes, or stands for another.
pub fn json(original: &[u8], rng: &mut Rng) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<Value>(original) else {
        return mutate(original, rng);
    };
    let mut paths = Vec::new();
    gather(&document, String::new(), &mut paths);
    let path = &paths[below(rng, paths.len())];
    let other = paths[below(rng, paths.len())].clone();
    let moved = document.pointer(&other).cloned().unwrap_or_default();
    let Some(value) = document.pointer_mut(path) else {
        return original.to_vec();
    };
    *value = match (below(rng, 12), value.take()) {
        (0, _) => Value::Null,
        (1, _) => json!([]),
        (2, _) => json!({}),
        (3, _) => json!(""),
        (4, _) => json!(true),
        (5, value) => json!([value.clone(), value]),
        (6, Value::Object(mut map)) => {
            if let Some(key) = map.keys().nth(below(rng, map.len().max(1))).cloned() {
                map.remove(&key);
            }
            Value::Object(map)
        }
        (7, Value::Array(mut list)) => {
            list.truncate(below(rng, list.len() + 1));
            Value::Array(list)
        }
        (8, _) => json!("a".repeat(1 << below(rng, 16))),
        (9, _) => moved,
        (10, Value::String(text)) => json!(String::from_utf8_lossy(&mutate(text.as_bytes(), rng))),
        _ => serde_json::from_str(EXTREME[below(rng, EXTREME.len())]).unwrap_or(json!(-0.5)),
    };
    serde_json::to_vec(&document).expect("a document is written")
}

fn gather(value: &Value, path: String, paths: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            let key = key.replace('~', "~0").replace('/', "~1");
            gather(value, format!("{path}/{key}"), paths);
        }),
        // Vocabularies are long lists of the same.
        Value::Array(list) => list.iter().take(100).enumerate().for_each(|(i, value)| {
            gather(value, format!("{path}/{i}"), paths);
        }),
        _ => {}
    }
    paths.push(path);
}

/// A safetensors file whose header, or rarely its data, is spoiled; mostly the header is told to be as long as it is.
fn safetensors(original: &[u8], rng: &mut Rng) -> Vec<u8> {
    let (header, data) = original.split_at(8 + u64::from_le_bytes(original[..8].try_into().unwrap()) as usize);
    let (length, header) = header.split_at(8);
    let mut bytes = match below(rng, 8) {
        0 => return mutate(original, rng),
        1 => [length, header, &mutate(data, rng)].concat(),
        2 => [length, &json(header, rng), data].concat(),
        3 => [length, &mutate(header, rng), data].concat(),
        4 => [length, &flood(header, rng), data].concat(),
        5 => [length, &overstate(header, rng), data].concat(),
        6 => [length, &miscount(header, rng), data].concat(),
        _ => [length, &misspell(header, rng), data].concat(),
    };
    if below(rng, 8) > 0 && bytes.len() >= data.len() + 8 {
        let length = (bytes.len() - data.len() - 8) as u64;
        bytes[..8].copy_from_slice(&length.to_le_bytes());
    }
    bytes
}

/// The place of one of the bytes that are of a kind.
fn one_of(bytes: &[u8], is: fn(&u8) -> bool, rng: &mut Rng) -> Option<usize> {
    let places: Vec<usize> = (0..bytes.len()).filter(|at| is(&bytes[*at])).collect();
    (!places.is_empty()).then(|| places[below(rng, places.len())])
}
