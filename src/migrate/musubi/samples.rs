//! `--sample_prompts`: a file with a prompt on every line, followed by its settings as flags.

use super::super::document::Block;
use super::Migration;
use super::dataset::whole;
use crate::models::FamilyName;

impl Migration<'_> {
    pub(super) fn samples(&mut self) {
        self.number::<u64>("sample_every_n_steps", "validation", "every", None);
        let Some(file) = self.flags.text("sample_prompts") else {
            return;
        };
        let name = format!("--sample_prompts {file}");
        let text = match self.source.read(&file) {
            Ok(text) => text,
            Err(message) => return self.document.remark(name, format!("is not read: {message}")),
        };
        let lines = text.lines().map(str::trim).enumerate();
        let prompts: Vec<Block> = lines
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(n, line)| self.sample(&format!("{file}:{}", n + 1), line))
            .collect();
        if prompts.is_empty() {
            self.document.remark(name, "holds no prompts");
        } else {
            self.document.root.block("validation").list("prompts", prompts, &name);
        }
    }

    /// Parses `a red ball --w 640 --h 480 --f 25 --d 1 --s 20`
    fn sample(&mut self, place: &str, line: &str) -> Block {
        let mut prompt = Block::default();
        let mut parts = line.split(" --");
        prompt.set("prompt", parts.next().unwrap_or_default().trim(), "");
        // Defaults of musubi-tuner.
        prompt.set("num_frames", 1, "");
        prompt.set("height", 256, "");
        prompt.set("width", 256, "");
        prompt.set("steps", 20, "");
        let embedded = self.family == FamilyName::HunyuanVideo; // two scales: one embedded, one of two predictions
        prompt.set("guidance_scale", if embedded { 6.0 } else { 5.0 }, "");
        for part in parts {
            let (name, value) = part.split_once(char::is_whitespace).unwrap_or((part, ""));
            let value = value.trim();
            let key = match name {
                "w" => "width",
                "h" => "height",
                "f" => "num_frames",
                "d" => "seed",
                "s" => "steps",
                "l" if embedded => "true_cfg_scale",
                "g" if embedded => "guidance_scale",
                "l" => "guidance_scale",
                "n" => {
                    prompt.set("negative_prompt", value, "");
                    continue;
                }
                "i" => {
                    prompt.set("image", self.source.path(value), "");
                    continue;
                }
                _ => {
                    self.document.remark(
                        format!("{place}: --{name} {value}"),
                        "vtrain's validation has no such setting",
                    );
                    continue;
                }
            };
            let is_scale = key.ends_with("_scale");
            let whole = value.parse::<u64>().ok().filter(|_| !is_scale);
            let number = value.parse::<f64>().ok().filter(|n| n.is_finite() && is_scale);
            match (whole, number) {
                (Some(value), _) if value > 0 || key == "seed" => {
                    let made = match key {
                        "num_frames" => self::whole(value),
                        "width" | "height" => value / 8 * 8,
                        _ => value,
                    };
                    if made != value {
                        let why = format!("is rounded down to {made}, in musubi-tuner too");
                        self.document.remark(format!("{place}: --{name} {value}"), why);
                    }
                    prompt.set(key, made, "");
                }
                (_, Some(value)) => prompt.set(key, value, ""),
                _ => self.flags.problems.push(format!(
                    "{place}: --{name}: expected a number, found '{}'",
                    value.escape_debug()
                )),
            }
        }
        prompt
    }
}
