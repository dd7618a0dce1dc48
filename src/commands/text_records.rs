//! Records of embedded captions and prompts: their keys, by the content of the text, of the picture that goes with it and of the
//! files of the text encoder.

use anyhow::Context;
use blake3::Hash;
use candle_core::DType;

use crate::data::cache::{Cache, Key, Picture, RecordSchema, TextEncoderId, TextId};
use crate::models::Family;
use crate::nn::storage::quantize::Quantization;

/// Records that a text encoder makes.
#[derive(Debug, Clone)]
pub struct TextRecords {
    encoder: TextEncoderId,
    /// Schema of each record.
    pub form: RecordSchema,
}

impl TextRecords {
    /// Records of a checkpoint's text encoder, loaded so; its files are hashed unless the cache knows them.
    ///
    /// # Errors
    /// Fails for files that cannot be read, and for missing ones that the cache has never seen.
    pub fn of(
        cache: &Cache,
        family: &dyn Family,
        dtype: DType,
        quantization: Option<Quantization>,
    ) -> anyhow::Result<Self> {
        let spec = family.spec();
        let mut fingerprint = cache.fingerprint(&spec.directory, spec.text_encoder_parts)?;
        if spec.empty_prompts_have_no_tokens {
            fingerprint = blake3::hash(&[fingerprint.as_bytes(), "no tokens".as_bytes()].concat());
        }
        Ok(Self {
            encoder: TextEncoderId {
                fingerprint,
                dtype,
                quantization,
                tokens: spec.text().tokens,
            },
            form: RecordSchema::caption(spec.text().tensors(), dtype),
        })
    }

    /// Returns the key of a text's record.
    ///
    /// # Errors
    /// Fails for a picture that cannot be read.
    pub fn key(&self, cache: &Cache, text: &TextId) -> anyhow::Result<Key> {
        let picture = text.picture.as_ref().map(|picture| hash(cache, picture)).transpose()?;
        Ok(Key::caption(&text.text, picture, &self.encoder))
    }
}

/// Returns the hash of a picture: of what makes the clip's record, or of the file and its size.
fn hash(cache: &Cache, picture: &Picture) -> anyhow::Result<Hash> {
    match picture {
        Picture::FirstFrame(key) => Ok(key.hash()),
        Picture::File(path, [height, width]) => {
            let content = cache.hash(path).with_context(|| path.display().to_string())?;
            Ok(blake3::hash(format!("{content} {height}x{width}").as_bytes()))
        }
    }
}
