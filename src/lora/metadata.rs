//! `lora_adapter_metadata` in the header of an adapter file: settings for PEFT's `LoraConfig` as JSON, keys prefixed
//! and sorted. diffusers passes all of it to `LoraConfig` when it loads the file, and a PEFT that does not know a key
//! refuses the file; so only keys that are necessary for the result are written. All of them are as old as
//! `lora_adapter_metadata` itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::adapters::Adapter;
use super::format::DIFFUSERS_PREFIX as PREFIX;
use super::{Config, TargetModules, scale};

/// Returns the settings of a run's adapters on `layers`.
pub fn text(config: &Config, layers: &[&str]) -> String {
    write(&LoraConfigEntries {
        rank: config.rank,
        alpha: config.alpha,
        ranks: Map::new(),
        alphas: Map::new(),
        targets: targets(&config.target_modules, layers),
        use_rslora: config.use_rslora,
        lora_bias: false,
    })
}

/// Returns the settings of any adapters: the most frequent values, and patterns for the others. `lora_bias`: every
/// lora_B has a bias, too.
pub fn text_of(adapters: &BTreeMap<String, Adapter>, lora_bias: bool) -> String {
    let use_rslora = !adapters.is_empty() && adapters.values().all(|adapter| adapter.use_rslora);
    // A file has a single kind of scale: adapters of the other kind get an equivalent alpha.
    let alpha = |adapter: &Adapter| match adapter.use_rslora == use_rslora {
        true => adapter.alpha,
        false => adapter.alpha * scale(1.0, adapter.rank(), true) / scale(1.0, adapter.rank(), false),
    };
    let rank = most(adapters.values().map(Adapter::rank)).unwrap_or(1);
    let common = most(adapters.values().map(|adapter| alpha(adapter).to_bits())).map_or(1.0, f64::from_bits);
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (layer, adapter) in adapters {
        if adapter.rank() != rank {
            ranks.insert(layer.clone(), json!(adapter.rank()));
        }
        if alpha(adapter) != common {
            alphas.insert(layer.clone(), number(alpha(adapter)));
        }
    }
    write(&LoraConfigEntries {
        rank,
        alpha: common,
        ranks,
        alphas,
        targets: adapters.keys().cloned().collect(),
        use_rslora,
        lora_bias,
    })
}

/// Settings to be written.
struct LoraConfigEntries {
    rank: usize,
    alpha: f64,
    ranks: Map<String, Value>,
    alphas: Map<String, Value>,
    targets: Value,
    use_rslora: bool,
    lora_bias: bool,
}

fn write(settings: &LoraConfigEntries) -> String {
    let mut keys = vec![
        ("alpha_pattern", json!(settings.alphas)),
        ("lora_alpha", number(settings.alpha)),
        ("r", json!(settings.rank)),
        ("rank_pattern", json!(settings.ranks)),
        ("target_modules", settings.targets.clone()),
    ];
    if settings.use_rslora {
        keys.push(("use_rslora", json!(true))); // PEFT's default is false
    }
    if settings.lora_bias {
        keys.push(("lora_bias", json!(true))); // as above
    }
    let prefixed = keys.into_iter().map(|(key, value)| (format!("{PREFIX}{key}"), value));
    let prefixed = Value::Object(Map::from_iter(prefixed));
    format!("{prefixed:#}")
}

/// Returns the most frequent item; of several, the smallest.
fn most<T: Ord>(items: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    let most = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    most.map(|(item, _)| item)
}

/// Formats integers without a point: PEFT's alpha is an integer.
fn number(alpha: f64) -> Value {
    match alpha as i64 {
        whole if whole as f64 == alpha => json!(whole),
        _ => json!(alpha),
    }
}

/// A regular expression is kept. Names are sorted, because PEFT has them as a set; `all-linear` is spelled out, as in
/// PEFT.
fn targets(targets: &TargetModules, layers: &[&str]) -> Value {
    let mut names: Vec<&str> = match targets {
        TargetModules::Suffixes(names) => names.iter().map(String::as_str).collect(),
        TargetModules::Regex(_) if targets.is_all_linear() => layers.to_vec(),
        TargetModules::Regex(pattern) => return json!(pattern),
    };
    names.sort_unstable();
    names.dedup();
    json!(names)
}
