//! Differences between a checkpoint's settings and the current ones, key by key.

use serde_json::Value;

/// Returns lines such as `optimizer.lr: 0.0001 in the checkpoint, 0.0002 now`; none without a difference.
pub fn list(then: &Value, now: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", Some(then), Some(now), &mut lines);
    lines
}

fn compare(path: &str, then: Option<&Value>, now: Option<&Value>, lines: &mut Vec<String>) {
    match (then, now) {
        (Some(then), Some(now)) if then == now => {}
        (Some(Value::Object(then)), Some(Value::Object(now))) => {
            let added = now.keys().filter(|key| !then.contains_key(*key));
            for key in then.keys().chain(added) {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                compare(&path, then.get(key), now.get(key), lines);
            }
        }
        // Lists of plain values are short, and clearer as a whole.
        (Some(Value::Array(then)), Some(Value::Array(now))) if then.iter().chain(now).any(|item| item.is_object()) => {
            for i in 0..then.len().max(now.len()) {
                compare(&format!("{path}[{i}]"), then.get(i), now.get(i), lines);
            }
        }
        (then, now) => {
            let show = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
            lines.push(format!("{path}: {} in the checkpoint, {} now", show(then), show(now)));
        }
    }
}
