//! Memory of text encoders, by their configs: for plans.

use std::path::Path;

use super::llama_conditioner::SKIPPED_BLOCKS;
use super::llava;
use crate::text::{llama, t5};

/// Memory of a text encoder besides the weights that it reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextMemory {
    /// Tensors of its files that it does not read, by the starts of their names.
    pub unread: Vec<String>,
    /// Bytes that embedding a text takes, about.
    pub activation_bytes: u64,
}

impl TextMemory {
    /// Reads the `config.json` in `folder`, for texts of so many tokens; nothing is known of an encoder that is none of ours.
    pub fn of(folder: &Path, tokens: usize) -> Self {
        let path = folder.join("config.json");
        if let Ok(config) = t5::Config::load(&path) {
            return Self {
                unread: Vec::new(),
                activation_bytes: config.activation_bytes(tokens as u64),
            };
        }
        if let Ok(config) = llama::Config::load(&path) {
            let unread = |root: &str| config.unread(SKIPPED_BLOCKS, root);
            return Self {
                unread: [unread(""), unread("model.")].concat(),
                activation_bytes: config.activation_bytes(tokens as u64),
            };
        }
        let Ok(config) = llava::Config::load(&path) else {
            return Self::default();
        };
        let roots = ["language_model.model.", "model.language_model."];
        let unread = roots.map(|root| config.text.unread(SKIPPED_BLOCKS, root));
        let heads = ["lm_head.", "language_model.lm_head."].map(String::from);
        Self {
            unread: [unread.concat(), heads.to_vec()].concat(),
            activation_bytes: config.text.activation_bytes((tokens + config.image_tokens()) as u64),
        }
    }
}
