//! Migration from musubi-tuner: `accelerate launch ... wan_train_network.py` and its flags, with a `dataset.toml`.
//!
//! Flags: `wan_train_network.py`, `hv_train_network.py`, `training/parser_common.py`, `training/trainer_base.py` and
//! their docs. Its models are single files, vtrain's are diffusers directories, selected by the task.

use std::ops::{Deref, DerefMut};

use super::document::Document;
use super::draft::{Draft, Zero};
use super::flags::{Launch, Reader, file_name};
use super::{Migrated, Source, command, finish, leave};
use crate::models::FamilyName;

mod config_file;
mod dataset;
mod diffusion;
mod reasons;
mod samples;

/// Converts a script that runs `wan_train_network.py` or `hv_train_network.py` to a run file; `dataset_config` replaces the script's data set
/// file.
///
/// # Errors
/// Lists every value that cannot be read, one message each.
pub fn migrate(source: &Source, dataset_config: Option<&str>) -> Result<Migrated, Vec<String>> {
    let mut document = Document::default();
    let mut launch = command(source, is_training, &mut document)?;
    config_file::read(source, &mut launch, &mut document).map_err(|e| vec![format!("{}: {e}", source.name)])?;
    let flags = Reader::new(&launch, &mut document);
    let mut migration = Migration {
        draft: Draft {
            source,
            document,
            flags,
            default: DEFAULT,
        },
        image_to_video: false,
        family: FamilyName::Wan,
    };
    migration.model(&launch)?;
    migration.dataset(dataset_config);
    migration.tiling();
    migration.lora();
    migration.train();
    migration.diffusion();
    migration.optimizer();
    migration.lr_scheduler();
    migration.checkpoint();
    migration.samples();
    migration.tracking();
    let Draft {
        mut document,
        mut flags,
        ..
    } = migration.draft;
    leave(flags.rest(), reasons::REASONS, "musubi-tuner", &mut document);
    finish(document, flags, source, "musubi-tuner")
}

/// Matches `wan_train_network.py`, or `musubi_tuner.wan_train_network` after `-m`.
fn is_training(name: &str) -> bool {
    name.strip_suffix(".py").unwrap_or(name).ends_with("train_network")
}

struct Migration<'a> {
    draft: Draft<'a>,
    image_to_video: bool,
    /// Family that the script trains.
    family: FamilyName,
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

/// Frame rates of the models' training clips.
const WAN_FPS: f64 = 16.0;
const HUNYUAN_FPS: f64 = 24.0;

/// Linear layers of HunyuanVideo's blocks, but for modulation: those of `networks.lora`.
const HUNYUAN_LAYERS: &str = r"(single_)?transformer_blocks\.\d+\.(attn\..*|ff\..*|ff_context\..*|proj_mlp|proj_out)";

const DEFAULT: &str = "musubi-tuner's default";

/// Tasks, and their checkpoints on the Hub.
const TASKS: &[(&str, &str)] = &[
    ("t2v-1.3B", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
    ("t2v-14B", "Wan-AI/Wan2.1-T2V-14B-Diffusers"),
    ("i2v-14B", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"),
    ("t2v-A14B", "Wan-AI/Wan2.2-T2V-A14B-Diffusers"),
    ("i2v-A14B", "Wan-AI/Wan2.2-I2V-A14B-Diffusers"),
];

impl Migration<'_> {
    /// Tiles of the VAE, on by either flag.
    fn tiling(&mut self) {
        let said = ["vae_tiling", "vae_spatial_tile_sample_min_size"].map(|name| self.flags.said(name));
        let tiles = self.flags.switch("vae_tiling");
        let size = self.flags.take("vae_spatial_tile_sample_min_size");
        if let Some(size) = &size {
            self.remark(size, "tiles have the size that diffusers gives the family");
        }
        if tiles || size.is_some() {
            let from = if tiles { &said[0] } else { &said[1] };
            self.set("precompute", "vae_tiling", true, from);
        }
    }

    fn model(&mut self, launch: &Launch) -> Result<(), Vec<String>> {
        let name = file_name(&launch.script);
        let module = name
            .strip_suffix(".py")
            .unwrap_or(name)
            .rsplit('.')
            .next()
            .unwrap_or(name);
        match module {
            "hv_train_network" => {
                self.family = FamilyName::HunyuanVideo;
                self.set("model", "family", "hunyuan_video", name);
                self.set("model", "path", "hunyuanvideo-community/HunyuanVideo", name);
                self.guidance();
            }
            "wan_train_network" => self.wan(),
            _ => {
                return Err(vec![format!(
                    "{}: {}: vtrain migrates wan_train_network.py and hv_train_network.py only",
                    self.source.name,
                    name.escape_debug()
                )]);
            }
        }
        Ok(())
    }

    /// Frame rate of the model's clips.
    fn fps(&self) -> f64 {
        match self.family {
            FamilyName::HunyuanVideo => HUNYUAN_FPS,
            _ => WAN_FPS,
        }
    }

    /// Converts the guidance scale that HunyuanVideo is told in training.
    fn guidance(&mut self) {
        let said = self.flags.said("guidance_scale");
        self.number::<f64>("guidance_scale", "train", "guidance_embedding", Some(1.0));
        self.document.remark(
            said,
            "musubi-tuner embeds this number as it is; vtrain 1000 times it, as the model learned and as samplers do",
        );
    }

    fn wan(&mut self) {
        self.set("model", "family", "wan", "wan_train_network.py");
        let given = self.flags.text("task");
        let task = given.as_deref().unwrap_or("t2v-14B");
        let from = match &given {
            Some(task) => format!("--task {task}"),
            None => DEFAULT.to_string(),
        };
        let Some((_, path)) = TASKS.iter().find(|(name, _)| *name == task) else {
            let names: Vec<&str> = TASKS.iter().map(|(name, _)| *name).collect();
            let message = format!(
                "--task: vtrain migrates {} only, found '{}'",
                names.join(", "),
                task.escape_debug()
            );
            return self.flags.problems.push(message);
        };
        self.set("model", "path", *path, &from);
        self.image_to_video = task.starts_with("i2v");
        if task.contains("A14B") {
            self.document
                .remark(from, "Wan 2.2 has two transformers, of which vtrain trains none so far");
        }
    }

    fn lora(&mut self) {
        self.number::<u64>("network_dim", "lora", "rank", Some(4));
        self.number::<f64>("network_alpha", "lora", "alpha", Some(1.0));
        let module = self.flags.take("network_module");
        let from = if module.is_some() { "--network_module" } else { DEFAULT };
        let own = match self.family {
            FamilyName::HunyuanVideo => {
                self.set("lora", "target_modules", HUNYUAN_LAYERS, from);
                self.document.remark(
                    from,
                    "musubi-tuner has query, key and value in one matrix with one adapter, vtrain has an adapter for each",
                );
                "networks.lora"
            }
            _ => {
                let mut names = vec!["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"];
                if self.image_to_video {
                    names.extend(["add_k_proj", "add_v_proj"]);
                }
                self.set("lora", "target_modules", names, from);
                "networks.lora_wan"
            }
        };
        if let Some(flag) = module.as_ref().filter(|flag| flag.values != [own]) {
            self.remark(flag, "vtrain trains LoRA in PEFT's form");
        }
        if let Some(path) = self.flags.text("network_weights") {
            let path = self.source.path(&path);
            self.set("lora", "init", path, "--network_weights");
        }
    }

    fn train(&mut self) {
        if let Some(seed) = self.flags.number::<u64>("seed") {
            self.document.root.set("seed", seed, "--seed");
        }
        if self.flags.has("max_train_epochs") {
            self.number::<u64>("max_train_epochs", "train", "epochs", None);
            if let Some(flag) = self.flags.take("max_train_steps") {
                self.remark(&flag, "--max_train_epochs overrides it, in musubi-tuner too");
            }
        } else {
            self.number::<u64>("max_train_steps", "train", "steps", Some(1600));
        }
        self.number::<u64>(
            "gradient_accumulation_steps",
            "train",
            "gradient_accumulation_steps",
            Some(1),
        );
        self.checkpointing();
        self.clipping(Zero::NoClipping);
    }

    fn checkpointing(&mut self) {
        let (offloads, from) = (
            "gradient_checkpointing_cpu_offload",
            "--gradient_checkpointing_cpu_offload",
        );
        let checkpoints = self.flags.has("gradient_checkpointing");
        self.onoff("gradient_checkpointing", "train", "gradient_checkpointing");
        match self.flags.take(offloads) {
            Some(_) if checkpoints => self.set("train", "activation_policy", "offloaded", from),
            Some(flag) => self.remark(
                &flag,
                "does nothing without --gradient_checkpointing, in musubi-tuner too",
            ),
            None => {}
        }
    }

    fn optimizer(&mut self) {
        match self.flags.take("optimizer_type").filter(|flag| flag.values != [""]) {
            Some(flag) => self.optimizer_name(&flag),
            None => self.set("optimizer", "name", "adamw", DEFAULT),
        }
        self.number::<f64>("learning_rate", "optimizer", "lr", Some(2e-6));
        // torch.optim.AdamW's defaults.
        self.set("optimizer", "beta1", 0.9, "AdamW's default");
        self.set("optimizer", "beta2", 0.999, "AdamW's default");
        self.set("optimizer", "weight_decay", 0.01, "AdamW's default");
        self.set("optimizer", "epsilon", 1e-8, "AdamW's default");
        for value in self
            .flags
            .take("optimizer_args")
            .map(|flag| flag.values)
            .unwrap_or_default()
        {
            self.optimizer_arg(&value);
        }
    }

    /// Parses `weight_decay=0.1`, `betas=0.9,0.99`
    fn optimizer_arg(&mut self, text: &str) {
        let from = format!("--optimizer_args {text}");
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let numbers: Option<Vec<f64>> = value
            .trim_matches(['(', ')', '[', ']'])
            .split(',')
            .map(|n| n.trim().parse().ok().filter(|n: &f64| n.is_finite()))
            .collect();
        match (name, numbers.as_deref()) {
            ("weight_decay", Some(&[decay])) => self.set("optimizer", "weight_decay", decay, &from),
            ("eps", Some(&[epsilon])) => self.set("optimizer", "epsilon", epsilon, &from),
            ("betas", Some(&[beta1, beta2])) => {
                self.set("optimizer", "beta1", beta1, &from);
                self.set("optimizer", "beta2", beta2, &from);
            }
            ("weight_decay" | "eps" | "betas", _) => {
                self.flags
                    .problems
                    .push(format!("--optimizer_args: '{}' cannot be read", text.escape_debug()));
            }
            _ => self.document.remark(from, "vtrain's AdamW has no such setting"),
        }
    }

    fn lr_scheduler(&mut self) {
        for name in ["lr_scheduler_type", "lr_scheduler_args"] {
            if let Some(flag) = self.flags.take(name).filter(|flag| !flag.values.join("").is_empty()) {
                self.flags
                    .wrong(&flag, "makes a schedule that vtrain does not have: leave it out");
            }
        }
        let name = self.schedule();
        self.warmup(&name);
        for (flag, key, reader) in [
            ("lr_scheduler_num_cycles", "num_cycles", "cosine_with_restarts"),
            ("lr_scheduler_power", "power", "polynomial"),
        ] {
            if name == reader && key == "power" {
                self.number::<f64>(flag, "lr_scheduler", key, None);
            } else if name == reader {
                self.number::<u64>(flag, "lr_scheduler", key, None);
            } else if let Some(flag) = self.flags.take(flag) {
                self.remark(&flag, &format!("is read with --lr_scheduler {reader} only"));
            }
        }
    }

    /// Converts `--lr_warmup_steps`: steps, or a share of all steps below 1 or with a %.
    fn warmup(&mut self, schedule: &str) {
        let Some(text) = self.flags.text("lr_warmup_steps") else {
            return self.set("lr_scheduler", "warmup_steps", 0, DEFAULT);
        };
        let from = format!("--lr_warmup_steps {text}");
        let value = match text.trim().strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().ok().map(|percent| percent / 100.0),
            None => text.trim().parse::<f64>().ok(),
        };
        match value {
            Some(value) if value > 0.0 && schedule == "constant" => self.flags.problems.push(format!(
                "{from}: a constant schedule has no warm-up, and musubi-tuner stops there, too: write --lr_scheduler \
                 constant_with_warmup"
            )),
            Some(share) if share > 0.0 && share < 1.0 => match self.document.root.number("train", "steps") {
                Some(steps) => {
                    let from = format!("{from} of {steps} steps");
                    self.set("lr_scheduler", "warmup_steps", (share * steps as f64) as u64, &from);
                }
                // Only the data set determines the number of steps in its epochs.
                None => self.set("lr_scheduler", "warmup_ratio", share, &from),
            },
            Some(steps) if steps >= 0.0 && steps.fract() == 0.0 && steps < 1e12 && !text.contains('%') => {
                self.set("lr_scheduler", "warmup_steps", steps as u64, "--lr_warmup_steps");
            }
            _ => self.flags.problems.push(format!(
                "--lr_warmup_steps: expected a whole number or a share below 1, found '{}'",
                text.escape_debug()
            )),
        }
    }

    fn checkpoint(&mut self) {
        self.number::<u64>("save_every_n_steps", "checkpoint", "every", None);
        self.set("checkpoint", "limit", 10_000, "musubi-tuner keeps them all");
        let dir = self.flags.text("output_dir");
        let name = self.flags.text("output_name");
        let (path, from) = match (&dir, &name) {
            (Some(dir), Some(name)) => (format!("{dir}/{name}"), "--output_dir, --output_name"),
            (Some(dir), None) => (dir.clone(), "--output_dir"),
            (None, Some(name)) => (name.clone(), "--output_name"),
            (None, None) => return,
        };
        let path = self.source.path(&path);
        self.document.root.set("output_dir", path, from);
    }

    fn tracking(&mut self) {
        let Some(flag) = self.flags.take("log_with") else {
            return;
        };
        match flag.values.first().map(String::as_str) {
            Some("tensorboard" | "all") => self.set("tracking", "tensorboard", true, "--log_with"),
            _ => self.remark(
                &flag,
                "vtrain writes metrics.jsonl and TensorBoard's files, and uploads nothing",
            ),
        }
    }
}
