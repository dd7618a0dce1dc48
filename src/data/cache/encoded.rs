//! A run's encoded clips and captions: their keys and schemas, and reading them.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use blake3::{Hash, Hasher};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Cache, Key, Picture, RecordSchema, TextId};
use crate::data::Bucket;
use crate::diffusion::posterior::Posterior;

/// Training data of a run. Records are read on demand: together they may not fit into memory.
#[derive(Debug)]
pub struct Encoded {
    /// The cache that holds the records.
    pub cache: Cache,
    /// Samples in the survey's order, without those left out.
    pub samples: Vec<Encoding>,
    /// Records of all captions and prompts, including the empty one.
    pub texts: HashMap<TextId, Key>,
    /// True if captions were encoded with the first frames of their clips.
    pub sees_pictures: bool,
    /// Schema of every caption's record.
    pub text_form: RecordSchema,
}

/// A clip's record, with the clip's properties for training.
#[derive(Debug, Clone)]
pub struct Encoding {
    /// Path of the clip.
    pub video: PathBuf,
    /// Caption as it is encoded.
    pub caption: String,
    /// Bucket that the clip is fitted to.
    pub bucket: Bucket,
    /// Number of times the clip is seen in an epoch.
    pub repeats: usize,
    /// Frames per second of the selected frames.
    pub fps: f64,
    /// Key of the clip's record.
    pub key: Key,
    /// Tensors that the record must hold.
    pub form: RecordSchema,
}

/// A sample as listed in a checkpoint, to report changes later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleListing {
    /// Path of the clip, for display.
    pub video: String,
    /// Start of the record's key.
    pub clip: String,
    /// Caption as it is encoded.
    pub caption: String,
    /// Number of times the clip is seen in an epoch.
    pub repeats: usize,
}

/// Cache record of a clip. On the CPU, f32.
#[derive(Debug, Clone)]
pub struct Clip {
    /// (1, C, f, h, w)
    pub posterior: Posterior,
    /// The family's first-frame tensors, each (1, ...): only for image-to-video checkpoints.
    pub image: Vec<Tensor>,
}

impl Encoded {
    /// Reads the clip of a sample.
    ///
    /// # Errors
    /// Fails for a sample out of range, and for a record that was removed or damaged since the run started.
    pub fn clip(&self, sample: usize) -> anyhow::Result<Clip> {
        let Encoding { key, form, .. } = self.sample(sample)?;
        let tensors = self.cache.read(key, form)?;
        let tensors = tensors.iter().map(|tensor| tensor.unsqueeze(0));
        let mut tensors = tensors.collect::<candle_core::Result<Vec<_>>>()?.into_iter();
        let (Some(mean), Some(logvar)) = (tensors.next(), tensors.next()) else {
            bail!("{}: no mean and log-variance in it", self.cache.path(key).display());
        };
        Ok(Clip {
            posterior: Posterior { mean, logvar },
            image: tensors.collect(),
        })
    }

    /// Reads the caption of a sample, as [`text`](Self::text).
    pub fn caption(&self, sample: usize) -> anyhow::Result<Vec<Tensor>> {
        self.text(&self.caption_id(self.sample(sample)?))
    }

    /// Reads the empty caption, as [`text`](Self::text).
    pub fn empty_caption(&self) -> anyhow::Result<Vec<Tensor>> {
        self.text(&"".into())
    }

    /// Returns the text that a sample is trained with.
    pub fn caption_id(&self, sample: &Encoding) -> TextId {
        TextId {
            text: sample.caption.clone(),
            picture: self.sees_pictures.then_some(Picture::FirstFrame(sample.key)),
        }
    }

    /// Reads an encoded caption or prompt, on the CPU: its embedding (L, D), and its mask (L) if there is one.
    ///
    /// # Errors
    /// Fails for a text that was not encoded, and for a record that was removed or damaged since the run started.
    pub fn text(&self, text: &TextId) -> anyhow::Result<Vec<Tensor>> {
        let key = self.texts.get(text);
        let key = key.with_context(|| format!("the prompt {:?} was not encoded before", text.text))?;
        self.cache.read(key, &self.text_form)
    }

    /// Returns the path of a text's record.
    pub fn text_path(&self, text: &TextId) -> Option<PathBuf> {
        Some(self.cache.path(self.texts.get(text)?))
    }

    /// Returns the path of a sample's clip record.
    pub fn clip_path(&self, sample: &Encoding) -> PathBuf {
        self.cache.path(&sample.key)
    }

    /// Returns a hash of the training data, in its order: it changes with any clip, frame rate, caption or encoder.
    pub fn fingerprint(&self) -> Hash {
        let mut hasher = Hasher::new();
        for sample in &self.samples {
            let caption = self.texts.get(&self.caption_id(sample));
            for key in [Some(&sample.key), caption].into_iter().flatten() {
                hasher.update(key.hash().as_bytes());
            }
            hasher.update(&(sample.repeats as u64).to_le_bytes());
            hasher.update(&sample.fps.to_le_bytes());
        }
        hasher.finalize()
    }

    /// Returns the samples that [`fingerprint`](Self::fingerprint) covers.
    pub fn list(&self) -> Vec<SampleListing> {
        let short = |key: &Key| key.hash().to_hex()[..16].to_string();
        let listed = |sample: &Encoding| SampleListing {
            video: sample.video.display().to_string(),
            clip: short(&sample.key),
            caption: self.texts.get(&self.caption_id(sample)).map(short).unwrap_or_default(),
            repeats: sample.repeats,
        };
        self.samples.iter().map(listed).collect()
    }

    /// Returns the frames per second of a sample.
    pub fn fps(&self, sample: usize) -> anyhow::Result<f64> {
        Ok(self.sample(sample)?.fps)
    }

    fn sample(&self, sample: usize) -> anyhow::Result<&Encoding> {
        let count = self.samples.len();
        self.samples
            .get(sample)
            .with_context(|| format!("sample {sample} of {count}"))
    }
}
