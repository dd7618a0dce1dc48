//! Videos that show what a run has learned so far.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `validation:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Steps between rounds of videos.
    pub every: usize,
    pub prompts: Vec<Prompt>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            every: 500,
            prompts: Vec::new(),
        }
    }
}

/// One video to make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Prompt {
    pub prompt: String,
    pub negative_prompt: String,
    pub num_frames: usize,
    pub height: usize,
    pub width: usize,
    /// Denoising steps.
    pub steps: usize,
    pub guidance_scale: f64,
    pub seed: u64,
}

impl Default for Prompt {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: String::new(),
            num_frames: 49,
            height: 480,
            width: 720,
            steps: 50,
            guidance_scale: 6.0,
            seed: 0,
        }
    }
}

impl Config {
    /// Values that parse but make no sense, by path below `validation`.
    pub fn check(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        if self.every == 0 {
            wrong.push(("every".into(), "must be at least 1, got 0".into()));
        }
        for (i, prompt) in self.prompts.iter().enumerate() {
            let sizes = [
                ("num_frames", prompt.num_frames),
                ("height", prompt.height),
                ("width", prompt.width),
                ("steps", prompt.steps),
            ];
            for (key, _) in sizes.into_iter().filter(|(_, value)| *value == 0) {
                wrong.push((format!("prompts[{i}].{key}"), "must be at least 1, got 0".into()));
            }
            if prompt.prompt.trim().is_empty() {
                wrong.push((format!("prompts[{i}].prompt"), "must not be empty".into()));
            }
        }
        wrong
    }
}
