//! Keys of cache records: hashes of everything that determines their content, and nothing else.

use std::path::{Path, PathBuf};

use blake3::Hash;
use candle_core::DType;
use serde::Serialize;
use serde_json::json;

use crate::data::loader::ClipSelection;
use crate::nn::storage::quantize::Quantization;
use crate::rng::Rng;

/// Version, incremented when the same key would mean other content.
const FORMAT: u32 = 1;

/// Key of a record.
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

/// Tiles that a clip is encoded in, as its key says them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum EncodedTiles {
    /// None (false); or those that the VAE's config gives (true), where no others have ever been.
    Some(bool),
    /// These.
    Named(String),
}

/// Identity of the clip encoder: the settings that determine its output.
#[derive(Debug, Clone)]
pub struct EncoderId {
    /// Hash of the VAE's files.
    pub fingerprint: Hash,
    /// Number format that the VAE computes in.
    pub dtype: DType,
    /// Tiles, which change the result slightly.
    pub tiling: EncodedTiles,
    /// True if first-frame tensors are kept as well.
    pub image: bool,
}

/// Identity of the text encoder: the settings that determine its output.
#[derive(Debug, Clone)]
pub struct TextEncoderId {
    /// Hash of the text encoder's and tokenizer's files.
    pub fingerprint: Hash,
    /// Number format that the text encoder computes in.
    pub dtype: DType,
    /// Form that its matrices are stored in while it loads.
    pub quantization: Option<Quantization>,
    /// Tokens of every caption, padded or truncated.
    pub tokens: usize,
}

impl Key {
    /// Key of the selection `cut` from the clip with this content. The bucket enters as the number and size of the
    /// frames. An orientation is included only if it turns the picture, so that keys of upright clips stay as they were
    /// before orientations were read.
    pub fn clip(content: Hash, cut: &ClipSelection, coder: &EncoderId) -> Self {
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

    /// Key of a caption's record; `picture` is a hash of the picture that the encoder sees with it, if any.
    pub fn caption(text: &str, picture: Option<Hash>, coder: &TextEncoderId) -> Self {
        let mut recipe = json!({
            "format": FORMAT,
            "caption": text,
            "encoder": coder.fingerprint.to_string(),
            "dtype": coder.dtype.as_str(),
            "tokens": coder.tokens,
        });
        // Keys of encoders that stay as they are have not changed.
        if let Some(form) = coder.quantization {
            recipe["quantization"] = form.name().into();
        }
        if let Some(picture) = picture {
            recipe["picture"] = picture.to_string().into();
        }
        Self::of(Kind::Caption, &recipe)
    }

    fn of(kind: Kind, recipe: &serde_json::Value) -> Self {
        let hash = blake3::hash(recipe.to_string().as_bytes());
        Self { kind, hash }
    }

    /// Returns the hash that names the record's file.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Returns the path of the record in the cache `dir`.
    pub fn path(&self, dir: &Path) -> PathBuf {
        let folder = match self.kind {
            Kind::Clip => "clips",
            Kind::Caption => "captions",
        };
        dir.join(folder).join(format!("{}.safetensors", self.hash))
    }
}

/// Generator of a clip's random selection, seeded by the run's seed and the clip's content, so that neither its name
/// nor its position in a list matters.
pub fn rng(seed: u64, content: Hash) -> Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(content.as_bytes());
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    Rng::new(u32::from_le_bytes([a, b, c, d]).into())
}
