//! Validation: `--validation_prompts` with `:::` and `@@@`, or the file of `--validation_dataset_file`.

use serde_json::Value;

use super::super::document::Block;
use super::datasets::read_json;
use super::{Migration, Trainer};

/// Limit for videos of one prompt.
const MOST_VIDEOS: u64 = 64;

impl Migration<'_> {
    pub(super) fn validation(&mut self) {
        let listed = self.flags.text("validation_dataset_file");
        let mut prompts = match listed {
            Some(file) if file.ends_with(".json") => match read_json(self, &file) {
                Ok(json) => self.prompt_file(&file, &json),
                Err(message) => {
                    self.document.remark(
                        format!("--validation_dataset_file {file}"),
                        format!("is not read: {message}"),
                    );
                    Vec::new()
                }
            },
            Some(file) => {
                self.document.remark(
                    format!("--validation_dataset_file {file}"),
                    "only .json is read: write its rows as validation.prompts",
                );
                Vec::new()
            }
            None => self.typed_prompts(),
        };
        if matches!(self.trainer, Trainer::Diffusers | Trainer::Factory) {
            self.guidance(&mut prompts);
        } else if self.trainer == Trainer::Mochi {
            self.mochi_videos(&mut prompts);
        } else if let Some(fps) = self.flags.number::<f64>("fps") {
            prompts.iter_mut().for_each(|prompt| prompt.set("fps", fps, "--fps"));
            if prompts.is_empty() {
                self.document
                    .remark(format!("--fps {fps}"), "there are no prompts to make videos of");
            }
        }
        let default = (self.trainer == Trainer::Today).then_some(500);
        self.number::<u64>("validation_steps", "validation", "every", default);
        if let Some(flag) = self.flags.take("validation_epochs") {
            self.remark(&flag, "vtrain counts in steps: write validation.every");
        }
        if !prompts.is_empty() {
            self.document.root.block("validation").list("prompts", prompts, "");
        }
    }

    /// Converts flags from before finetrainers: videos as large as the clips, with one guidance scale.
    fn guidance(&mut self, prompts: &mut [Block]) {
        if let Some(flag) = self.flags.take("fps") {
            self.remark(&flag, "frames are spread over the clip, there too");
        }
        let scale = self.flags.number::<f64>("guidance_scale");
        let from = if scale.is_some() {
            "--guidance_scale"
        } else {
            self.default
        };
        for prompt in prompts {
            prompt.set("guidance_scale", scale.unwrap_or(6.0), from);
            if let Some([height, width]) = self.size {
                prompt.set("height", height, "--height");
                prompt.set("width", width, "--width");
            }
        }
    }

    /// Converts flags of v0.0.1: everything in one text.
    fn typed_prompts(&mut self) -> Vec<Block> {
        let names = ["validation_separator", "validation_prompt_separator"];
        let mut separator = None;
        for name in names {
            if let Some(text) = self.flags.text(name).filter(|text| !text.is_empty()) {
                self.document
                    .remark(format!("--{name} {text}"), "the prompts are split at it");
                separator = Some(text);
            }
        }
        let separator = separator.unwrap_or_else(|| ":::".into());
        let videos = self.flags.number::<u64>("num_validation_videos");
        let text = ["validation_prompts", "validation_prompt"]
            .iter()
            .find_map(|name| self.flags.text(name));
        let images = self.flags.text("validation_images");
        let clips = self.flags.take("validation_videos");
        if let Some(flag) = clips {
            self.remark(
                &flag,
                "vtrain's validation starts from a picture or a text, not from a clip",
            );
        }
        let Some(text) = text else {
            if let Some(images) = images {
                self.document.remark(
                    format!("--validation_images {images}"),
                    "there are no prompts that they belong to",
                );
            }
            return Vec::new();
        };
        let images: Vec<&str> = images.as_deref().map_or(Vec::new(), |i| i.split(&separator).collect());
        if videos == Some(1) {
            self.document.remark(
                "--num_validation_videos 1".to_string(),
                "vtrain makes one video of each prompt",
            );
        }
        let mut prompts = Vec::new();
        for (n, one) in text.split(&separator).enumerate() {
            let copies = videos.unwrap_or(1);
            if !(1..=MOST_VIDEOS).contains(&copies) {
                let message = format!("--num_validation_videos: expected 1 to {MOST_VIDEOS}, found {copies}");
                self.flags.problems.push(message);
                return prompts;
            }
            for seed in 0..copies {
                let mut prompt = self.typed_prompt(one.trim());
                if let Some(image) = images.get(n) {
                    prompt.set("image", self.source.path(image.trim()), "--validation_images");
                }
                if copies > 1 {
                    prompt.set("seed", seed, "--num_validation_videos");
                }
                prompts.push(prompt);
            }
        }
        prompts
    }

    /// Parses `a red ball@@@49x480x720`
    fn typed_prompt(&mut self, text: &str) -> Block {
        let mut prompt = Block::default();
        let (words, size) = text
            .rsplit_once("@@@")
            .map_or((text, None), |(words, size)| (words, Some(size)));
        prompt.set("prompt", words.trim(), "--validation_prompts");
        let Some(size) = size else { return prompt };
        let numbers: Option<Vec<u64>> = size.split('x').map(|n| n.trim().parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[frames, height, width]) => {
                prompt.set("num_frames", frames, "");
                prompt.set("height", height, "");
                prompt.set("width", width, "");
            }
            _ => {
                let message = format!(
                    "--validation_prompts: expected frames x height x width after @@@, found '{}'",
                    size.escape_debug()
                );
                if !self.flags.problems.contains(&message) {
                    self.flags.problems.push(message);
                }
            }
        }
        prompt
    }

    fn prompt_file(&mut self, file: &str, json: &Value) -> Vec<Block> {
        let Some(Value::Array(rows)) = json.get("data") else {
            self.flags
                .problems
                .push(format!("--validation_dataset_file: {file}: expected a list 'data'"));
            return Vec::new();
        };
        let name = format!("--validation_dataset_file {file}");
        let mut prompts = Vec::new();
        for (n, row) in rows.iter().enumerate() {
            let mut prompt = Block::default();
            let Value::Object(entries) = row else {
                let message = format!("--validation_dataset_file: {file}: data[{n}]: expected a mapping");
                self.flags.problems.push(message);
                continue;
            };
            for (key, value) in entries {
                let place = format!("{file}: data[{n}].{key}");
                if !self.row(&mut prompt, key, value, &place) {
                    self.flags
                        .problems
                        .push(format!("--validation_dataset_file: {place}: cannot be read: {value}"));
                }
            }
            prompts.push(prompt);
        }
        if prompts.is_empty() {
            self.document.remark(name, "holds no prompts");
        } else {
            self.document.remark(name, "its rows are validation.prompts");
        }
        prompts
    }

    /// Converts one column of a row; returns false for a value of the wrong kind.
    fn row(&mut self, prompt: &mut Block, key: &str, value: &Value, place: &str) -> bool {
        match (key, value) {
            (_, Value::Null) => {}
            ("caption" | "prompt", Value::String(text)) => prompt.set("prompt", text.as_str(), key),
            ("negative_prompt", Value::String(text)) => prompt.set("negative_prompt", text.as_str(), ""),
            ("image_path", Value::String(path)) => prompt.set("image", self.source.path(path), key),
            ("height" | "width" | "num_frames" | "seed", Value::Number(n)) if n.is_u64() => {
                prompt.set(key, value.clone(), "")
            }
            ("num_inference_steps", Value::Number(n)) if n.is_u64() => prompt.set("steps", value.clone(), key),
            ("guidance_scale", Value::Number(_)) => prompt.set(key, value.clone(), ""),
            ("fps" | "frame_rate", Value::Number(_)) => prompt.set("fps", value.clone(), key),
            ("video_path", Value::String(path)) => self.document.remark(
                format!("{place}: {path}"),
                "vtrain's validation starts from a picture or a text: write the clip's first frame as image",
            ),
            (
                "caption"
                | "prompt"
                | "negative_prompt"
                | "image_path"
                | "height"
                | "width"
                | "num_frames"
                | "seed"
                | "num_inference_steps"
                | "guidance_scale"
                | "fps"
                | "frame_rate"
                | "video_path",
                _,
            ) => return false,
            _ => self
                .document
                .remark(format!("{place}: {value}"), "is not a key that vtrain knows"),
        }
        true
    }
}
