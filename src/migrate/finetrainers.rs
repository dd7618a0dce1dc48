//! Migration from finetrainers: `accelerate launch` or `torchrun`, `train.py` and its flags; and from its predecessors,
//! diffusers' own CogVideoX scripts and cogvideox-factory, with its script for Mochi 1.
//!
//! Flags and defaults: `finetrainers/args.py` of v0.0.1 and of today, `trainer/sft_trainer/config.py`; diffusers'
//! `examples/cogvideo/train_cogvideox_lora.py` and `train_cogvideox_image_to_video_lora.py`; cogvideox-factory's
//! `training/args.py`. They are recognised by the script's name and, for finetrainers, by the flags that name the data:
//! `--data_root` and `--dataset_file`, or `--dataset_config`.

use std::ops::{Deref, DerefMut};

use super::document::Document;
use super::draft::{Draft, Zero};
use super::flags::Reader;
use super::{Migrated, Source, command, finish, leave};
use crate::models::FamilyName;

mod datasets;
mod mochi;
mod names;
mod reasons;
mod validation;

pub use names::DIFFUSERS_SCRIPTS;
use names::{Trainer, is_training};

/// Converts a script that runs `train.py` to a run file.
///
/// # Errors
/// Lists every value that cannot be read, one message each.
pub fn migrate(source: &Source) -> Result<Migrated, Vec<String>> {
    let mut document = Document::default();
    let launch = command(source, is_training, &mut document)?;
    let mut flags = Reader::new(&launch, &mut document);
    let trainer = Trainer::of(&launch, &flags).map_err(|message| vec![format!("{}: {message}", source.name)])?;
    flags.spell(names::OTHER_NAMES);
    let mut migration = Migration {
        draft: Draft {
            source,
            document,
            flags,
            default: trainer.default_comment(),
        },
        trainer,
        size: None,
        family: trainer.family(),
    };
    migration.model();
    migration.datasets();
    migration.lora();
    migration.train();
    migration.diffusion();
    migration.optimizer();
    migration.checkpoint();
    migration.validation();
    migration.tracking();
    migration.hub();
    let Draft {
        mut document,
        mut flags,
        ..
    } = migration.draft;
    leave(flags.rest(), reasons::REASONS, trainer.name(), &mut document);
    finish(document, flags, source, trainer.name())
}

struct Migration<'a> {
    draft: Draft<'a>,
    trainer: Trainer,
    /// Height and width of the clips, if each has its own flag.
    size: Option<[u64; 2]>,
    /// Family named by `--model_name` or by the script's name, if vtrain has it.
    family: Option<FamilyName>,
}

impl<'a> Deref for Migration<'a> {
    type Target = Draft<'a>;

    fn deref(&self) -> &Draft<'a> {
        &self.draft
    }
}

impl DerefMut for Migration<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.draft
    }
}

impl Migration<'_> {
    fn model(&mut self) {
        if let Some(family) = self.trainer.family() {
            let from = self.trainer.name();
            let family = serde_json::to_value(family).unwrap_or_default();
            self.set("model", "family", family, from);
        }
        if let Some(name) = self.flags.text("model_name") {
            match serde_json::from_value::<FamilyName>(name.clone().into()) {
                Ok(family) => {
                    self.family = Some(family);
                    self.set("model", "family", name, "--model_name");
                }
                Err(_) => self.document.remark(
                    format!("--model_name {name}"),
                    "vtrain has no family of this name: model.family is left to the checkpoint, which it may not know",
                ),
            }
        }
        if let Some(path) = self.flags.text("pretrained_model_name_or_path") {
            let path = model_path(self.source, &path);
            self.set("model", "path", path, "--pretrained_model_name_or_path");
        }
        if let Some(revision) = self.flags.text("revision") {
            self.set("model", "revision", revision, "--revision");
        }
        if self.trainer == Trainer::Mochi {
            self.cast_dit();
        }
        if let Some(flag) = self.flags.take("transformer_dtype") {
            match flag.values.first().map(String::as_str) {
                Some("bf16") => self.set("model", "dtype", "bf16", "--transformer_dtype"),
                Some("fp32") => self.set("model", "dtype", "f32", "--transformer_dtype"),
                Some("fp16") => self.remark(
                    &flag,
                    "vtrain keeps frozen weights in bf16 or f32: model.dtype stays bf16",
                ),
                _ => self.flags.wrong(&flag, "is one of bf16, fp16, fp32"),
            }
        }
    }

    fn lora(&mut self) {
        let rank = match self.trainer {
            Trainer::Diffusers => 128,
            Trainer::Mochi => 16,
            Trainer::Factory | Trainer::First | Trainer::Today => 64,
        };
        self.number::<u64>("rank", "lora", "rank", Some(rank));
        self.number::<f64>("lora_alpha", "lora", "alpha", Some(rank as f64));
        let Some(flag) = self.flags.take("target_modules") else {
            let from = self.default;
            match self.trainer {
                Trainer::First => {}
                Trainer::Today => {
                    let all = "(transformer_blocks|single_transformer_blocks).*(to_q|to_k|to_v|to_out.0)";
                    self.set("lora", "target_modules", all, from);
                }
                Trainer::Diffusers | Trainer::Factory | Trainer::Mochi => {
                    let names = ["to_k", "to_q", "to_v", "to_out.0"].map(serde_json::Value::from);
                    self.set("lora", "target_modules", names.to_vec(), from);
                }
            }
            return;
        };
        let from = "--target_modules";
        match &flag.values[..] {
            [] => self.flags.wrong(&flag, "takes layers' names or an expression"),
            [one] if one.contains(['(', '*', '|', '[', '^', '+', '\\']) || one == "all-linear" => {
                self.set("lora", "target_modules", one.as_str(), from);
            }
            // Names in a single pair of quotes are split as well.
            words => {
                let names: Vec<&str> = words.iter().flat_map(|word| word.split_whitespace()).collect();
                self.set("lora", "target_modules", names, from);
            }
        }
    }

    fn train(&mut self) {
        self.seed();
        let epochs = self.flags.number::<u64>("train_epochs");
        match (self.flags.has("train_steps"), epochs) {
            (true, Some(epochs)) => {
                let (epochs, steps) = (
                    format!("{} {epochs}", self.flags.said("train_epochs")),
                    self.flags.said("train_steps"),
                );
                self.document.remark(epochs, format!("{steps} overrides it, there too"));
            }
            (false, Some(epochs)) => {
                let from = self.flags.said("train_epochs");
                self.set("train", "epochs", epochs, &from);
            }
            (false, None) if self.trainer != Trainer::Today => {
                let from = self.default;
                self.set("train", "epochs", 1, from);
            }
            _ => {}
        }
        let today = self.trainer == Trainer::Today;
        self.number::<u64>("train_steps", "train", "steps", today.then_some(1000));
        self.number::<u64>("batch_size", "train", "batch_size", Some(if today { 1 } else { 4 }));
        self.number::<u64>(
            "gradient_accumulation_steps",
            "train",
            "gradient_accumulation_steps",
            Some(1),
        );
        self.onoff("gradient_checkpointing", "train", "gradient_checkpointing");
        match self.trainer {
            Trainer::Mochi => self.set(
                "train",
                "max_grad_norm",
                serde_json::Value::Null,
                "the script clips nothing",
            ),
            _ => self.clipping(Zero::Clips),
        }
        self.number::<f64>("caption_dropout_p", "train", "caption_dropout", None);
        if let Some(flag) = self.flags.take("caption_dropout_technique") {
            let why = match flag.values.first().map(String::as_str) {
                Some("empty") => "is what vtrain's caption_dropout does",
                _ => "vtrain puts the empty caption in place of a dropped one, not zeros",
            };
            self.remark(&flag, why);
        }
        if let Some(flag) = self.flags.take("training_type") {
            let why = match flag.values == ["lora"] {
                true => "is what vtrain does",
                false => "vtrain trains LoRA adapters without a control input, and this run file does that",
            };
            self.remark(&flag, why);
        }
    }

    fn seed(&mut self) {
        if let Some(seed) = self.flags.number::<u64>("seed") {
            self.document.root.set("seed", seed, "--seed");
        }
    }

    fn diffusion(&mut self) {
        if self.family == Some(FamilyName::CogVideoX) {
            for name in FLOW {
                if let Some(flag) = self.flags.take(name) {
                    self.remark(
                        &flag,
                        "CogVideoX draws its timesteps uniformly, in vtrain and in finetrainers",
                    );
                }
            }
            return;
        }
        let scheme = self.flags.take("flow_weighting_scheme");
        let name = scheme
            .as_ref()
            .and_then(|flag| flag.values.first())
            .map_or("none", String::as_str);
        let from = if scheme.is_some() {
            "--flow_weighting_scheme"
        } else {
            self.default
        };
        match name {
            "none" => self.set("diffusion", "timesteps", "uniform", from),
            "logit_normal" | "mode" => self.set("diffusion", "timesteps", name, from),
            "sigma_sqrt" | "cosmap" => self.set("diffusion", "weighting", name, from),
            _ => {
                if let Some(flag) = &scheme {
                    self.flags
                        .wrong(flag, "is one of none, logit_normal, mode, sigma_sqrt, cosmap");
                }
            }
        }
        for (flag, key, reader) in [
            ("flow_logit_mean", "logit_mean", "logit_normal"),
            ("flow_logit_std", "logit_std", "logit_normal"),
            ("flow_mode_scale", "mode_scale", "mode"),
        ] {
            if name == reader {
                self.number::<f64>(flag, "diffusion", key, None);
            } else if let Some(flag) = self.flags.take(flag) {
                self.remark(&flag, &format!("is read with --flow_weighting_scheme {reader} only"));
            }
        }
        if let Some(flag) = self.flags.take("flow_resolution_shifting") {
            self.set("diffusion", "shift", "auto", "--flow_resolution_shifting");
            if !flag.values.is_empty() {
                self.flags.wrong(&flag, "takes no value");
            }
            if let Some(flag) = self.flags.take("flow_shift") {
                self.remark(&flag, "the shift goes by the clip's size");
            }
        } else {
            let default = (self.trainer == Trainer::Today).then_some(1.0);
            self.number::<f64>("flow_shift", "diffusion", "shift", default);
        }
    }

    fn optimizer(&mut self) {
        if self.trainer == Trainer::Mochi {
            return self.mochi_optimizer();
        }
        let optimizer = self.flags.take("optimizer");
        match &optimizer {
            Some(flag) => self.optimizer_name(flag),
            None => self.document.remark(
                "--optimizer (not given)",
                "adam is taken then, by vtrain adamw, which keeps the decay apart from the gradient",
            ),
        }
        let said = self.flags.said("use_8bit_bnb");
        if self.flags.switch("use_8bit_bnb") {
            let typed = optimizer.map_or(String::new(), |flag| format!("{} ", flag.typed()));
            self.set("optimizer", "name", "adamw8bit", &format!("{typed}{said}"));
        }
        self.number::<f64>("lr", "optimizer", "lr", Some(1e-4));
        self.number::<f64>("beta1", "optimizer", "beta1", Some(0.9));
        self.number::<f64>("beta2", "optimizer", "beta2", Some(0.95));
        self.number::<f64>("weight_decay", "optimizer", "weight_decay", Some(1e-4));
        self.number::<f64>("epsilon", "optimizer", "epsilon", Some(1e-8));
        self.lr_scheduler();
    }

    fn lr_scheduler(&mut self) {
        let name = self.schedule();
        let default = (name != "constant").then_some(500);
        self.number::<u64>("lr_warmup_steps", "lr_scheduler", "warmup_steps", default);
        if name == "cosine_with_restarts" {
            self.number::<u64>("lr_num_cycles", "lr_scheduler", "num_cycles", None);
        } else if let Some(flag) = self.flags.take("lr_num_cycles") {
            self.remark(&flag, "is read with --lr_scheduler cosine_with_restarts only");
        }
        if name == "polynomial" {
            self.number::<f64>("lr_power", "lr_scheduler", "power", None);
        } else if let Some(flag) = self.flags.take("lr_power") {
            self.remark(&flag, "is read with --lr_scheduler polynomial only");
        }
    }

    fn checkpoint(&mut self) {
        let every = (self.trainer != Trainer::Mochi).then_some(500);
        self.number::<u64>("checkpointing_steps", "checkpoint", "every", every);
        if self.flags.has("checkpointing_limit") {
            self.number::<u64>("checkpointing_limit", "checkpoint", "limit", None);
        } else {
            let from = format!("{} keeps them all", self.trainer.name());
            self.set("checkpoint", "limit", 10_000, &from);
        }
        let output = self.flags.text("output_dir");
        let from = if output.is_some() { "--output_dir" } else { self.default };
        let name = self.trainer.default_output();
        let output = self.source.path(output.as_deref().unwrap_or(name));
        self.document.root.set("output_dir", output, from);
    }

    fn hub(&mut self) {
        let push = self.flags.switch("push_to_hub");
        if push {
            self.set("hub", "push", true, "--push_to_hub");
        }
        match self.flags.text("hub_model_id") {
            Some(repo) => self.set("hub", "repo", repo, "--hub_model_id"),
            None if push => self.document.remark(
                "--push_to_hub",
                "the repository was named after the output folder; write hub.repo: you/name",
            ),
            None => {}
        }
    }

    fn tracking(&mut self) {
        let Some(flag) = self.flags.take("report_to") else {
            return;
        };
        match flag.values.first().map(String::as_str) {
            Some("none") => self.set("tracking", "tensorboard", false, "--report_to"),
            Some("tensorboard" | "all") => self.set("tracking", "tensorboard", true, "--report_to"),
            _ => {
                self.set("tracking", "tensorboard", true, "");
                self.remark(
                    &flag,
                    "vtrain writes metrics.jsonl and TensorBoard's files, and uploads nothing",
                );
            }
        }
    }
}

/// Returns a folder's path relative to the run file; a name of the Hub is unchanged.
pub(super) fn model_path(source: &Source, path: &str) -> String {
    let hub = path.matches('/').count() == 1 && !path.starts_with(['.', '/', '~']);
    if hub && !source.from.join(path).is_dir() {
        path.to_string()
    } else {
        source.path(path)
    }
}

/// Flags of flow matching.
const FLOW: &[&str] = &[
    "flow_weighting_scheme",
    "flow_logit_mean",
    "flow_logit_std",
    "flow_mode_scale",
    "flow_shift",
    "flow_resolution_shifting",
];
