//! `lora_adapter_metadata` in the header of an adapter file: settings for PEFT's `LoraConfig` as JSON, keys prefixed and
//! sorted. diffusers hands all of it to `LoraConfig` when it loads the file, and a PEFT that does not know one of the keys
//! refuses the file; so only those are written without which the adapter would be another. All of them are as old as
//! `lora_adapter_metadata` itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::adapters::Adapter;
use super::diffusers::PREFIX;
use super::{Config, TargetModules, scale};

/// The settings of adapters on `layers`, as a run has them.
pub fn text(config: &Config, layers: &[&str]) -> String {
    write(&Settings {
        rank: config.rank,
        alpha: config.alpha,
        ranks: Map::new(),
        alphas: Map::new(),
        targets: targets(&config.target_modules, layers),
        use_rslora: config.use_rslora,
        lora_bias: false,
    })
}

/// The settings of adapters from anywhere: what most have in common, and patterns for the others. `lora_bias`: every
/// lora_B has a bias, too.
pub fn text_of(adapters: &BTreeMap<String, Adapter>, lora_bias: bool) -> String {
    let use_rslora = !adapters.is_empty() && adapters.values().all(|adapter| adapter.use_rslora);
    // One file has one kind of scale: those of the other kind get the alpha that makes the same of it.
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
    write(&Settings {
        rank,
        alpha: common,
        ranks,
        alphas,
        targets: adapters.keys().cloned().collect(),
        use_rslora,
        lora_bias,
    })
}

/// What is written.
struct Settings {
    rank: usize,
    alpha: f64,
    ranks: Map<String, Value>,
    alphas: Map<String, Value>,
    targets: Value,
    use_rslora: bool,
    lora_bias: bool,
}

fn write(settings: &Settings) -> String {
    let mut keys = vec![
        ("alpha_pattern", json!(settings.alphas)),
        ("lora_alpha", number(settings.alpha)),
        ("r", json!(settings.rank)),
        ("rank_pattern", json!(settings.ranks)),
        ("target_modules", settings.targets.clone()),
    ];
    if settings.use_rslora {
        keys.push(("use_rslora", json!(true))); // false is what PEFT takes without it
    }
    if settings.lora_bias {
        keys.push(("lora_bias", json!(true))); // as above
    }
    let prefixed = keys.into_iter().map(|(key, value)| (format!("{PREFIX}{key}"), value));
    let prefixed = Value::Object(Map::from_iter(prefixed));
    format!("{prefixed:#}")
}

/// The most frequent; of several, the smallest.
fn most<T: Ord>(items: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    let most = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    most.map(|(item, _)| item)
}

/// Whole numbers without a point: PEFT's alpha is an integer.
fn number(alpha: f64) -> Value {
    match alpha as i64 {
        whole if whole as f64 == alpha => json!(whole),
        _ => json!(alpha),
    }
}

/// An expression stays one. Names are sorted, since PEFT has them as a set; `all-linear` is spelled out, as PEFT does.
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
