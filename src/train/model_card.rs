//! `README.md` of a finished adapter: what it is and how to load it, with the front matter by which the Hugging Face
//! Hub finds and displays it.  <https://huggingface.co/docs/hub/model-cards>
//!
//! Prompts, names and paths come from the user. The front matter and Python get JSON strings, which are valid in both;
//! the shell gets single quotes; Markdown gets escapes; everything is on one line.

use std::fmt::Write;

use crate::hub::is_repository;
use crate::models::family::LoraLoading;
use crate::url;

/// Facts for the card.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Name of the adapter.
    pub name: String,
    /// A Hub repository or a directory.
    pub base_model: String,
    /// Form in few bits of the base's matrices in training.
    pub base_form: Option<String>,
    /// Transformer that took the place of the base model's own.
    pub transformer: Option<OtherTransformer>,
    /// The class that loads the base model in diffusers.
    pub pipeline: String,
    /// Way that it loads adapters.
    pub lora_loading: LoraLoading,
    /// True if its VAE works in tiles alone, which it must be told.
    pub tiles_only: bool,
    /// Input of the base model.
    pub task: Task,
    /// Frames per second of the base model's clips.
    pub frame_rate: f64,
    /// Clips trained on.
    pub num_clips: usize,
    /// Words at the start of every caption.
    pub trigger_words: Vec<String>,
    /// Rank of the adapters.
    pub rank: usize,
    /// Alpha of the adapters.
    pub alpha: f64,
    /// `lora.target_modules` of the run.
    pub target_modules: Vec<String>,
    /// Training steps.
    pub steps: u64,
    /// Highest learning rate.
    pub lr: f64,
    /// Clips of one step, over all micro-batches and processes.
    pub batch_size: usize,
    /// Validation videos shown in the card.
    pub samples: Vec<Sample>,
}

/// A transformer that took the place of the base model's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherTransformer {
    /// File or folder.
    pub path: String,
    /// The class that loads it in diffusers.
    pub class: String,
}

/// Input of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// A prompt alone.
    TextToVideo,
    /// A prompt and a first image.
    ImageToVideo,
}

/// A validation video.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Prompt of the video.
    pub prompt: String,
    /// Path relative to the card, with `/` between folders.
    pub path: String,
}

impl Facts {
    /// Returns the whole file.
    pub fn card(&self) -> String {
        format!(
            "{}\n# {}\n\n{}{}{}{}{}",
            self.front_matter(),
            markdown(&self.name),
            self.summary(),
            self.trigger(),
            self.table(),
            self.videos(),
            self.usage()
        )
    }

    fn front_matter(&self) -> String {
        let mut lines = vec!["---".to_string()];
        // The Hub rejects a card whose base is not a repository.
        if is_repository(&self.base_model) {
            lines.push(format!("base_model: {}", quoted(&self.base_model)));
            lines.push("base_model_relation: adapter".into());
        }
        let task = self.task.tag();
        lines.push("library_name: diffusers".into());
        lines.push(format!("pipeline_tag: {task}"));
        lines.push("tags:".into());
        lines.extend(["lora", task, "template:diffusion-lora", "diffusers", "vtrain"].map(|tag| format!("  - {tag}")));
        if !self.trigger_words.is_empty() {
            lines.push(format!("instance_prompt: {}", quoted(&self.trigger_words.join(", "))));
        }
        if !self.samples.is_empty() {
            lines.push("widget:".into());
        }
        for sample in &self.samples {
            lines.push(format!("  - text: {}", quoted(&sample.prompt)));
            lines.push(format!(
                "    output: {{url: {}}}",
                quoted(&url::encode_path(&sample.path))
            ));
        }
        lines.push("---\n".into());
        lines.join("\n")
    }

    fn summary(&self) -> String {
        let base = markdown(&self.base_model);
        let base = match is_repository(&self.base_model) {
            true => format!("[{base}](https://huggingface.co/{})", self.base_model),
            false => base,
        };
        let clips = match self.num_clips {
            1 => "one clip".to_string(),
            n => format!("{n} clips"),
        };
        let over = match &self.transformer {
            Some(other) => format!(" with the transformer {}", markdown(other.name())),
            None => String::new(),
        };
        format!("LoRA adapters for {base}{over}, trained on {clips} with vtrain.\n\n<Gallery />\n\n")
    }

    fn trigger(&self) -> String {
        if self.trigger_words.is_empty() {
            return String::new();
        }
        let words: Vec<String> = self
            .trigger_words
            .iter()
            .map(|word| format!("**{}**", markdown(word)))
            .collect();
        format!("## Trigger words\n\nBegin a prompt with {}.\n\n", words.join(" or "))
    }

    fn table(&self) -> String {
        let targets: Vec<String> = self.target_modules.iter().map(|name| markdown(name)).collect();
        let base_form = self
            .base_form
            .as_deref()
            .map(|form| ("Base model stored as", markdown(form)));
        let rows = [
            ("Rank", self.rank.to_string()),
            ("Alpha", self.alpha.to_string()),
            ("Layers", targets.join(", ")),
            ("Steps", self.steps.to_string()),
            ("Clips a step", self.batch_size.to_string()),
            ("Learning rate", format!("{:e}", self.lr)),
            ("Clips in the data set", self.num_clips.to_string()),
        ];
        let mut table = "## Training\n\n| | |\n| --- | --- |\n".to_string();
        for (what, value) in rows.into_iter().chain(base_form) {
            let _ = writeln!(table, "| {what} | {value} |"); // writing to a String cannot fail
        }
        table + "\n"
    }

    fn videos(&self) -> String {
        if self.samples.is_empty() {
            return String::new();
        }
        let links = self.samples.iter().map(|sample| {
            let prompt = markdown(&sample.prompt);
            format!("- [{prompt}]({})\n", url::encode_path(&sample.path))
        });
        format!("## Videos\n\n{}\n", links.collect::<String>())
    }

    fn usage(&self) -> String {
        let prompt = self.samples.first().map(|sample| sample.prompt.as_str());
        let prompt = prompt
            .or(self.trigger_words.first().map(String::as_str))
            .unwrap_or("a prompt");
        let (load, give, option) = match self.task {
            Task::TextToVideo => ("", "", ""),
            Task::ImageToVideo => (
                "image = load_image(\"first.png\")\n",
                "image=image, ",
                " --image first.png",
            ),
        };
        let imports = match self.task {
            Task::TextToVideo => "export_to_video",
            Task::ImageToVideo => "export_to_video, load_image",
        };
        let [json, peft, adapt] = python(self.lora_loading);
        let (pipeline, base, text) = (&self.pipeline, quoted(&self.base_model), quoted(prompt));
        let (class, made, given, flag) = match &self.transformer {
            Some(other) => (
                format!(", {}", other.classes()),
                format!("transformer = {}\n", other.made(&base)),
                "transformer=transformer, ",
                format!(" --transformer {}", shell(&other.path)),
            ),
            None => Default::default(),
        };
        format!(
            "## With diffusers\n\n```python\n{json}\
             import torch\nfrom diffusers import {pipeline}{class}\nfrom diffusers.utils import {imports}\n{peft}\n\
             {made}pipe = {pipeline}.from_pretrained({base}, {given}torch_dtype=torch.bfloat16).to(\"cuda\")\n\
             {tiles}{adapt}{load}video = pipe({give}prompt={text}).frames[0]\nexport_to_video(video, \"video.mp4\", fps={fps})\n```\n\n\
             ## With vtrain\n\n```sh\n\
             vtrain sample --model {model}{flag} --lora {adapter}{option} --prompt {words} --output video.mp4\n```\n",
            tiles = if self.tiles_only {
                "pipe.vae.enable_tiling()\n"
            } else {
                ""
            },
            fps = self.frame_rate,
            adapter = crate::run_dir::ADAPTER,
            model = shell(&self.base_model),
            words = shell(prompt),
        )
    }
}

/// Returns Python that loads the adapters: imports before others and after them, and statements.
fn python(loading: LoraLoading) -> [String; 3] {
    let (folder, adapter) = ("path/to/this/folder", crate::run_dir::ADAPTER);
    match loading {
        LoraLoading::Pipeline => {
            let load = format!("pipe.load_lora_weights(\"{folder}\", weight_name=\"{adapter}\")\n");
            [String::new(), String::new(), load]
        }
        LoraLoading::Peft => [
            "import json\n\n".into(),
            "from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict\n\
             from safetensors import safe_open\n"
                .into(),
            format!(
                "with safe_open(\"{folder}/{adapter}\", \"pt\") as file:\n    \
                 lora = {{key.removeprefix(\"transformer.\"): file.get_tensor(key) for key in file.keys()}}\n    \
                 settings = json.loads(file.metadata()[\"lora_adapter_metadata\"])\n\
                 settings = {{key.removeprefix(\"transformer.\"): value for key, value in settings.items()}}\n\
                 inject_adapter_in_model(LoraConfig(**settings), pipe.transformer)\n\
                 left = set_peft_model_state_dict(pipe.transformer, lora)\n\
                 assert not left.unexpected_keys\n"
            ),
        ],
    }
}

impl OtherTransformer {
    /// Name of the file or folder.
    fn name(&self) -> &str {
        let path = self.path.trim_end_matches('/');
        path.rsplit('/').next().unwrap_or(path)
    }

    fn is_gguf(&self) -> bool {
        self.path.to_lowercase().ends_with(".gguf")
    }

    /// Classes of diffusers that load it.
    fn classes(&self) -> String {
        match self.is_gguf() {
            true => format!("GGUFQuantizationConfig, {}", self.class),
            false => self.class.clone(),
        }
    }

    /// Expression that loads it in diffusers, by the config of `base`, which is quoted.
    fn made(&self, base: &str) -> String {
        let (class, path) = (&self.class, quoted(&self.path));
        let single = |more: &str| {
            format!(
                "{class}.from_single_file(\n    {path}, config={base}, subfolder=\"transformer\",{more} \
                 torch_dtype=torch.bfloat16\n)"
            )
        };
        if self.is_gguf() {
            single(" quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16),")
        } else if self.path.ends_with(".safetensors") {
            single("")
        } else {
            format!("{class}.from_pretrained({path}, torch_dtype=torch.bfloat16)")
        }
    }
}

impl Task {
    fn tag(self) -> &'static str {
        match self {
            Task::TextToVideo => "text-to-video",
            Task::ImageToVideo => "image-to-video",
        }
    }
}

/// Returns text without line breaks and other characters that YAML does not print.
fn one_line(text: &str) -> String {
    let foreign = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    let words: Vec<&str> = text.split(foreign).filter(|word| !word.is_empty()).collect();
    words.join(" ")
}

/// Quotes a string for JSON, YAML and Python.
fn quoted(text: &str) -> String {
    serde_json::Value::String(one_line(text)).to_string()
}

/// Quotes a word for a POSIX shell.
fn shell(text: &str) -> String {
    format!("'{}'", one_line(text).replace('\'', r"'\''"))
}

/// Escapes text for Markdown, also in a table or a link.
fn markdown(text: &str) -> String {
    let mut shown = String::new();
    for c in one_line(text).chars() {
        match c {
            '<' => shown.push_str("&lt;"),
            '>' => shown.push_str("&gt;"),
            '&' => shown.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '(' | ')' | '#' | '|' | '~' | '!' | '$' => {
                shown.extend(['\\', c]);
            }
            c => shown.push(c),
        }
    }
    shown
}
