//! Hash of everything that a clip is made from: the same hash means the same clip, up to the last bits of another device.
//!
//! Adapters, images and tables of ratios count by their content; the checkpoint by its path, and by the sizes and times of its
//! files, since hashing a transformer takes longer than a clip may.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use blake3::Hash;
use serde_json::{Value, json};

use super::args::Args;
use crate::sample::step_cache;
use crate::train::validate::Prompt;

/// Version, incremented when the same request would make another clip.
const FORMAT: u32 = 1;

/// Depth of a checkpoint's files: in the folders of its parts.
const DEPTH: usize = 2;

/// Settings that all clips of a call have in common.
#[derive(Debug, Clone)]
pub struct CallHash(Value);

impl CallHash {
    /// That of these flags, with the checkpoint in a folder.
    ///
    /// # Errors
    /// Fails for files that cannot be read.
    pub fn of(args: &Args, checkpoint: &Path) -> anyhow::Result<Self> {
        let loras = args.lora.iter().map(|lora| match lora.path.exists() {
            true => Ok(json!([content(&lora.path)?, lora.scale])),
            false => Ok(json!([lora.path, lora.scale])), // of the Hub
        });
        let ratios = match &args.cache {
            step_cache::Config::MagCache { ratios, .. } => Some(content(ratios)?),
            _ => None,
        };
        Ok(Self(json!({
            "format": FORMAT,
            "checkpoint": [content(checkpoint)?, args.variant],
            "transformer": args.transformer.as_deref().map(content).transpose()?,
            "adapters": loras.collect::<anyhow::Result<Vec<_>>>()?,
            "dtype": format!("{:?}", args.dtype),
            "quantization": [args.quantization, args.text_encoder_quantization],
            "vae_tiling": args.vae_tiling,
            "scheduler": args.scheduler.map(|name| format!("{name:?}")),
            "guidance": [format!("{:?}", args.guidance_rule), format!("{:?}", args.guidance_interval)],
            "dynamic_guidance": args.dynamic_guidance,
            "cache": [Some(args.cache.to_string()), ratios],
        })))
    }

    /// Returns the hash of the request for a prompt.
    ///
    /// # Errors
    /// Fails for an image that cannot be read.
    pub fn with(&self, prompt: &Prompt) -> anyhow::Result<Hash> {
        let image = prompt.image.as_deref().map(content).transpose()?;
        let named = Prompt {
            image: None,
            ..prompt.clone()
        };
        let recipe = json!({"call": self.0, "prompt": named, "image": image});
        Ok(blake3::hash(recipe.to_string().as_bytes()))
    }
}

/// Returns the hash of a file's content; of a folder its path, and the names, sizes and times of its files.
fn content(path: &Path) -> anyhow::Result<String> {
    let shown = || path.display().to_string();
    if !path.is_dir() {
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader(fs::File::open(path).with_context(shown)?)
            .with_context(shown)?;
        return Ok(hasher.finalize().to_string());
    }
    let mut files = Vec::new();
    list(path, DEPTH, &mut files).with_context(shown)?;
    files.sort();
    let real = path.canonicalize().with_context(shown)?;
    Ok(blake3::hash(format!("{} {files:?}", real.display()).as_bytes()).to_string())
}

/// Lists the files of a folder, each with its size and the time of its last change in nanoseconds.
fn list(folder: &Path, depth: usize, files: &mut Vec<(String, u64, u128)>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::metadata(&path)?; // of what a link leads to
        if metadata.is_dir() && depth > 1 {
            list(&path, depth - 1, files)?;
        } else if metadata.is_file() {
            let changed = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            files.push((path.display().to_string(), metadata.len(), changed.as_nanos()));
        }
    }
    Ok(())
}
