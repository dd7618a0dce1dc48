//! Keys that are `auto` in a run file, with what a plan chose for them.

use super::RunConfig;
use crate::models::Offload;
use crate::nn::residency::ResidentShare;
use crate::nn::storage::quantize::QuantizationSetting;
use crate::train::chosen::ChosenSettings;
use crate::train::segments::ActivationPolicy;

impl RunConfig {
    /// True if keys of the model are left to the plan, besides those that are recorded.
    pub fn leaves_weights_to_plan(&self, recorded: &ChosenSettings) -> bool {
        let open = |setting, recorded: Option<_>| setting == QuantizationSetting::Auto && recorded.is_none();
        let model = &self.model;
        (model.offload == Offload::Auto && recorded.offload.is_none())
            || open(model.quantization, recorded.quantization)
            || open(model.text_encoder_quantization, recorded.text_encoder_quantization)
    }

    /// True if `train.activation_policy` is left to the plan.
    pub fn leaves_activations_to_plan(&self) -> bool {
        self.train.gradient_checkpointing && self.train.activation_policy == ActivationPolicy::Auto
    }

    /// Returns these settings with the chosen ones in place of `auto`; a key that the run file gives stays as it is.
    pub fn with_chosen(&self, chosen: &ChosenSettings) -> Self {
        let mut config = self.clone();
        let model = &mut config.model;
        if let (Offload::Auto, Some(offload)) = (model.offload, chosen.offload) {
            model.offload = offload;
            if offload != Offload::Group {
                model.offload_resident = ResidentShare::Auto; // it goes with that alone
            }
        }
        for (key, form) in [
            (&mut model.quantization, chosen.quantization),
            (&mut model.text_encoder_quantization, chosen.text_encoder_quantization),
        ] {
            if let (QuantizationSetting::Auto, Some(form)) = (*key, form) {
                *key = form;
            }
        }
        if let (true, Some(policy)) = (self.leaves_activations_to_plan(), chosen.activation_policy) {
            config.train.activation_policy = policy;
        }
        config
    }

    /// Returns what `settled` settings have for the keys that are `auto` in these.
    pub fn chosen_in(&self, settled: &Self) -> ChosenSettings {
        let of = |form, settled| (form == QuantizationSetting::Auto).then_some(settled);
        let (model, other) = (&self.model, &settled.model);
        ChosenSettings {
            offload: (model.offload == Offload::Auto).then_some(other.offload),
            quantization: of(model.quantization, other.quantization),
            text_encoder_quantization: of(model.text_encoder_quantization, other.text_encoder_quantization),
            activation_policy: self
                .leaves_activations_to_plan()
                .then_some(settled.train.activation_policy),
        }
    }
}
