//! Recognition of the script, and its names for finetrainers' flags.

use super::super::flags::{Launch, Reader, file_name};
use crate::models::FamilyName;

/// diffusers' own training scripts for video.
pub const DIFFUSERS_SCRIPTS: [&str; 2] = ["train_cogvideox_lora.py", "train_cogvideox_image_to_video_lora.py"];
/// cogvideox-factory's, for LoRA.
const FACTORY_SCRIPTS: [&str; 2] = ["cogvideox_text_to_video_lora.py", "cogvideox_image_to_video_lora.py"];
/// That of cogvideox-factory and finetrainers v0.0.1 for Mochi 1.
const MOCHI_SCRIPT: &str = "text_to_video_lora.py";
/// Scripts that train the transformer itself.
const FULL_SCRIPTS: [&str; 2] = ["cogvideox_text_to_video_sft.py", "cogvideox_image_to_video_sft.py"];

/// Recognises the names of scripts that are supported, or rejected by name.
pub fn is_training(name: &str) -> bool {
    matches!(name, "train.py" | "finetrainers" | MOCHI_SCRIPT)
        || [DIFFUSERS_SCRIPTS, FACTORY_SCRIPTS, FULL_SCRIPTS]
            .concat()
            .contains(&name)
}

/// Origin of a command's flags and defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trainer {
    /// `examples/cogvideo` of diffusers.
    Diffusers,
    /// cogvideox-factory, which became finetrainers.
    Factory,
    /// The script of both for Mochi 1.
    Mochi,
    /// finetrainers v0.0.1.
    First,
    /// finetrainers.
    Today,
}

impl Trainer {
    /// # Errors
    /// Fails for a script that trains something else than vtrain does, or has other flags under a known name.
    pub fn of(launch: &Launch, flags: &Reader) -> Result<Self, String> {
        let name = file_name(&launch.script);
        if FULL_SCRIPTS.contains(&name) {
            return Err(format!(
                "{name} trains the whole transformer, vtrain LoRA adapters: migrate the _lora.py next to it"
            ));
        }
        if flags.has("model_path") && flags.has("train_resolution") {
            return Err(format!(
                "{name} has the flags of CogVideo's finetune/train.py (--model_path, --train_resolution), which is not read: \
                 write a run file by hand, or migrate its older finetune/train_cogvideox_lora.py"
            ));
        }
        Ok(match name {
            _ if DIFFUSERS_SCRIPTS.contains(&name) => Self::Diffusers,
            _ if FACTORY_SCRIPTS.contains(&name) => Self::Factory,
            MOCHI_SCRIPT => Self::Mochi,
            _ if flags.has("dataset_config") || flags.has("parallel_backend") => Self::Today,
            _ => Self::First,
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusers => "diffusers",
            Self::Factory => "cogvideox-factory",
            Self::Mochi | Self::First | Self::Today => "finetrainers",
        }
    }

    /// Returns the comment on a value without a flag.
    pub fn default_comment(self) -> &'static str {
        match self {
            Self::Diffusers | Self::Mochi => "the script's default",
            Self::Factory => "cogvideox-factory's default",
            Self::First | Self::Today => "finetrainers' default",
        }
    }

    pub fn default_output(self) -> &'static str {
        match self {
            Self::Diffusers => "cogvideox-lora",
            Self::Factory => "cogvideox-sft",
            Self::Mochi => "mochi-lora",
            Self::First => "finetrainer-training",
            Self::Today => "finetrainers-training",
        }
    }

    /// Returns the only family of a script, if it has one.
    pub fn family(self) -> Option<FamilyName> {
        match self {
            Self::Diffusers | Self::Factory => Some(FamilyName::CogVideoX),
            Self::Mochi => Some(FamilyName::Mochi),
            Self::First | Self::Today => None,
        }
    }
}

/// finetrainers' flags, with their earlier names.
pub const OTHER_NAMES: &[(&str, &str)] = &[
    ("data_root", "instance_data_root"),
    ("batch_size", "train_batch_size"),
    ("train_epochs", "num_train_epochs"),
    ("caption_dropout_p", "caption_dropout"),
    ("train_steps", "max_train_steps"),
    ("checkpointing_limit", "checkpoints_total_limit"),
    ("lr", "learning_rate"),
    ("beta1", "adam_beta1"),
    ("beta2", "adam_beta2"),
    ("beta3", "prodigy_beta3"),
    ("weight_decay", "adam_weight_decay"),
    ("epsilon", "adam_epsilon"),
    ("use_8bit_bnb", "use_8bit_adam"),
];
