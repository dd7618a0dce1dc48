//! PEFT's settings of adapters: `LoraConfig` as JSON, in the header of a safetensors file or in `adapter_config.json`.
//!
//! In the header's `lora_adapter_metadata` keys begin with the model's part (`transformer.lora_alpha`); `lora_config`,
//! which some trainers write, and `adapter_config.json` have them without it.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use fancy_regex::Regex;
use serde_json::Value;

use super::format::DIFFUSERS_PREFIX as PREFIX;

/// diffusers' header key of the settings.
pub const KEY: &str = "lora_adapter_metadata";

/// Adapter settings by layer.
#[derive(Debug, Default)]
pub struct PeftSettings {
    lora_alpha: Option<f64>,
    alpha_pattern: Vec<(Pattern, f64)>,
    pub use_rslora: bool,
    /// Ranks of the layers that are listed by their whole names.
    ranks: BTreeMap<String, usize>,
}

/// Layers that a number applies to.
#[derive(Debug)]
enum Pattern {
    /// Layer of this path, or, unless `whole`, every one that ends in it.
    Name {
        name: String,
        whole: bool,
    },
    Regex(Box<Regex>),
}

impl PeftSettings {
    /// Parses JSON text.
    ///
    /// # Errors
    /// Fails for anything but a JSON object, for non-finite numbers, and for a pattern that is not an expression.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let json: Value = serde_json::from_str(text).context("not JSON")?;
        ensure!(json.is_object(), "not a JSON object");
        let get = |key: &str| json.get(format!("{PREFIX}{key}")).or_else(|| json.get(key));
        let finite = |value: &Value| value.as_f64().filter(|alpha| alpha.is_finite());
        let mut alpha_pattern = Vec::new();
        for (pattern, alpha) in get("alpha_pattern").and_then(Value::as_object).into_iter().flatten() {
            let alpha = finite(alpha).with_context(|| format!("alpha_pattern: {pattern}: {alpha} is not a number"))?;
            alpha_pattern.push((Pattern::parse(pattern)?, alpha));
        }
        let lora_alpha = match get("lora_alpha") {
            None | Some(Value::Null) => None,
            Some(alpha) => Some(finite(alpha).with_context(|| format!("lora_alpha: {alpha} is not a number"))?),
        };
        ensure!(
            !get("use_dora").and_then(Value::as_bool).unwrap_or(false),
            "use_dora: DoRA is not supported"
        );
        Ok(Self {
            lora_alpha,
            alpha_pattern,
            use_rslora: get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
            ranks: ranks(get("r"), get("rank_pattern"), get("target_modules")),
        })
    }

    /// Returns a layer's rank, if its whole name is listed.
    pub fn rank(&self, layer: &str) -> Option<usize> {
        self.ranks.get(layer).copied()
    }

    /// Returns a layer's alpha, if given; the layer may have several names.
    pub fn alpha(&self, names: &[&str]) -> Option<f64> {
        let matches = |pattern: &Pattern| names.iter().any(|name| pattern.matches(name));
        let own = self.alpha_pattern.iter().find(|(pattern, _)| matches(pattern));
        own.map(|(_, alpha)| *alpha).or(self.lora_alpha)
    }
}

/// Returns the ranks of the layers that are listed by their names.
fn ranks(common: Option<&Value>, own: Option<&Value>, layers: Option<&Value>) -> BTreeMap<String, usize> {
    let number = |value: &Value| value.as_u64().and_then(|rank| usize::try_from(rank).ok());
    let layers = layers.and_then(Value::as_array).into_iter().flatten();
    let ranks = layers.filter_map(|layer| {
        let layer = layer.as_str()?;
        let rank = own.and_then(|own| own.get(layer)).or(common)?;
        Some((layer.to_string(), number(rank)?))
    });
    ranks.collect()
}

impl Pattern {
    /// PEFT matches `(.*\.)?(pattern)$` from the start (`get_pattern_key`). Most patterns are plain names.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (name, whole) = text.strip_prefix('^').map_or((text, false), |name| (name, true));
        if !name.contains(['\\', '[', '(', '*', '+', '?', '|', '{', '$', '^']) {
            return Ok(Self::Name {
                name: name.into(),
                whole,
            });
        }
        let regex = Regex::new(&format!(r"\A(?:.*\.)?(?:{text})\z"));
        Ok(Self::Regex(Box::new(
            regex.with_context(|| format!("alpha_pattern: '{text}'"))?,
        )))
    }

    fn matches(&self, layer: &str) -> bool {
        match self {
            Self::Name { name, whole: true } => layer == name,
            Self::Name { name, whole: false } => {
                let before = layer.strip_suffix(name.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }
            // An expression that gives up matches nothing.
            Self::Regex(regex) => regex.is_match(layer).unwrap_or(false),
        }
    }
}
