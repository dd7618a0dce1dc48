//! `lora_adapter_metadata` in the header of an adapter file: PEFT's `LoraConfig` as JSON, keys prefixed and sorted, as
//! diffusers 0.42 with PEFT 0.21 writes it. diffusers hands all of it to `LoraConfig` when it loads the file.

use serde_json::{Map, Value, json};

use super::diffusers::PREFIX;
use super::{Config, TargetModules};

/// The settings of adapters on `layers`.
pub fn text(config: &Config, layers: &[&str]) -> String {
    let prefixed = settings(config, layers)
        .into_iter()
        .map(|(key, value)| (format!("{PREFIX}{key}"), value));
    let prefixed = Value::Object(Map::from_iter(prefixed));
    format!("{prefixed:#}")
}

fn settings(config: &Config, layers: &[&str]) -> Map<String, Value> {
    let settings = json!({
        "alora_invocation_tokens": null,
        "alpha_pattern": {},
        "arrow_config": null,
        "auto_mapping": null,
        "base_model_name_or_path": null,
        "bias": "none",
        "corda_config": null,
        "ensure_weight_tying": false,
        "eva_config": null,
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": false,
        "init_lora_weights": true,
        "kasa_config": null,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": number(config.alpha),
        "lora_bias": false,
        "lora_dropout": config.dropout,
        "lora_ga_config": null,
        "megatron_config": null,
        "megatron_core": "megatron.core",
        "modules_to_save": null,
        "monteclora_config": null,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": config.rank,
        "rank_pattern": {},
        "revision": null,
        "target_modules": targets(&config.target_modules, layers),
        "target_parameters": null,
        "task_type": null,
        "trainable_token_indices": null,
        "use_bdlora": null,
        "use_dora": false,
        "use_qalora": false,
        "use_rslora": config.use_rslora,
        "velora_config": null,
    });
    match settings {
        Value::Object(settings) => settings,
        _ => unreachable!("it is written as an object right above"),
    }
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
