//! What a record is called: a hash of everything that decides what is in it, and of nothing else.

use std::path::{Path, PathBuf};

use blake3::Hash;
use candle_core::DType;
use serde_json::json;

use crate::data::loader::Cut;
use crate::rng::Rng;

/// Goes up when the same key would mean other numbers.
const FORMAT: u32 = 1;

/// The name of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    kind: Kind,
    hash: Hash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Clip,
    Caption,
}

/// Who encodes clips, as far as it decides what comes out.
#[derive(Debug, Clone)]
pub struct ClipCoder {
    pub fingerprint: Hash,
    pub dtype: DType,
    pub tiling: bool,
    /// Whether something is kept of the first frame as well.
    pub image: bool,
}

/// Who encodes captions, as far as it decides what comes out.
#[derive(Debug, Clone)]
pub struct CaptionCoder {
    pub fingerprint: Hash,
    pub dtype: DType,
    /// Of every caption, padded or cut.
    pub tokens: usize,
}

impl Key {
    /// The key of what `cut` takes of the clip with this content. The bucket is the cut's number and size of frames. An orientation
    /// that a picture gives itself is named where it turns: records from before it was heeded have other names.
    pub fn clip(content: Hash, cut: &Cut, coder: &ClipCoder) -> Self {
        let fit = &cut.fit;
        let mut recipe = json!({
            "format": FORMAT,
            "clip": content.to_string(),
            "frames": cut.frames,
            "resize": [fit.resize_height, fit.resize_width],
            "crop": [fit.top, fit.left, fit.height, fit.width],
            "encoder": coder.fingerprint.to_string(),
            "dtype": coder.dtype.as_str(),
            "tiling": coder.tiling,
            "image": coder.image,
        });
        if let Some(orientation) = cut.orientation.filter(|&number| number != 1) {
            recipe["orientation"] = orientation.into();
        }
        Self::of(Kind::Clip, &recipe)
    }

    pub fn caption(text: &str, coder: &CaptionCoder) -> Self {
        let recipe = json!({
            "format": FORMAT,
            "caption": text,
            "encoder": coder.fingerprint.to_string(),
            "dtype": coder.dtype.as_str(),
            "tokens": coder.tokens,
        });
        Self::of(Kind::Caption, &recipe)
    }

    fn of(kind: Kind, recipe: &serde_json::Value) -> Self {
        let hash = blake3::hash(recipe.to_string().as_bytes());
        Self { kind, hash }
    }

    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Where the record lies in the cache `dir`.
    pub fn path(&self, dir: &Path) -> PathBuf {
        let folder = match self.kind {
            Kind::Clip => "clips",
            Kind::Caption => "captions",
        };
        dir.join(folder).join(format!("{}.safetensors", self.hash))
    }
}

/// What a clip's random cut is drawn from: the run's seed and the clip's content, so that neither its name nor its
/// place in a list matters.
pub fn rng(seed: u64, content: Hash) -> Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(content.as_bytes());
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    Rng::new(u32::from_le_bytes([a, b, c, d]).into())
}
