//! Settings that were `auto` in a run file, and what the run's plan chose for them. Checkpoints keep them, so that a run that
//! resumes goes on with the same ones, whatever memory is free then.

use serde::{Deserialize, Serialize};

use super::segments::ActivationPolicy;
use crate::models::Offload;
use crate::nn::storage::quantize::QuantizationSetting;

/// Chosen values by their keys; None for a key that the run file gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ChosenSettings {
    /// `model.offload`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload: Option<Offload>,
    /// `model.quantization`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<QuantizationSetting>,
    /// `model.text_encoder_quantization`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_encoder_quantization: Option<QuantizationSetting>,
    /// `train.activation_policy`; that of the same name if nothing had to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_policy: Option<ActivationPolicy>,
}

impl ChosenSettings {
    /// True if the run file gives every key.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns keys and values, as `--set` takes them; without activations that stay as they are.
    pub fn changed(&self) -> Vec<String> {
        let json = serde_json::to_value(self).unwrap_or_default();
        let set = |section: &str, key: &str| {
            let value = json.get(key)?.as_str()?;
            Some(format!("{section}.{key}={value}"))
        };
        let policy = self.activation_policy != Some(ActivationPolicy::Auto);
        let sets = [
            set("train", "activation_policy").filter(|_| policy),
            set("model", "offload"),
            set("model", "quantization"),
            set("model", "text_encoder_quantization"),
        ];
        sets.into_iter().flatten().collect()
    }
}
