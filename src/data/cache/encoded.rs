//! A run's clips and captions, encoded: which records they are, and what is in them.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use blake3::{Hash, Hasher};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::{Cache, Form, Key};
use crate::data::Bucket;
use crate::diffusion::posterior::Posterior;

/// Everything that a run trains on. Records are read when they are asked for: together they may not fit into memory.
#[derive(Debug)]
pub struct Encoded {
    pub cache: Cache,
    /// In the survey's order, without those that had to be left out.
    pub samples: Vec<Encoding>,
    /// The records of all captions and prompts, the empty one among them.
    pub texts: HashMap<String, Key>,
    /// Of every caption's record.
    pub text_form: Form,
}

/// A clip's record, and what the trainer must know of the clip.
#[derive(Debug, Clone)]
pub struct Encoding {
    pub video: PathBuf,
    pub caption: String,
    pub bucket: Bucket,
    pub repeats: usize,
    /// Frames a second of what is taken of the clip.
    pub fps: f64,
    pub key: Key,
    pub form: Form,
}

/// A sample as it is remembered, to say later what has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// The clip's path, for people.
    pub video: String,
    /// The start of its record's key.
    pub clip: String,
    pub caption: String,
    pub repeats: usize,
}

/// What the cache keeps of a clip. On the CPU, f32.
#[derive(Debug, Clone)]
pub struct Clip {
    /// (1, C, f, h, w)
    pub posterior: Posterior,
    /// What the family keeps of the first frame, each (1, ...): only for image-to-video checkpoints.
    pub image: Vec<Tensor>,
}

impl Encoded {
    /// The clip of a sample.
    ///
    /// # Errors
    /// No such sample, a record that has gone or was damaged since the run started.
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

    /// The caption of a sample, as [`text`](Self::text).
    pub fn caption(&self, sample: usize) -> anyhow::Result<Vec<Tensor>> {
        self.text(&self.sample(sample)?.caption)
    }

    /// The empty caption, as [`text`](Self::text).
    pub fn empty_caption(&self) -> anyhow::Result<Vec<Tensor>> {
        self.text("")
    }

    /// A caption or prompt that was encoded, on the CPU: its embedding (L, D), and its mask (L) where there is one.
    ///
    /// # Errors
    /// A text that was not, a record that has gone or was damaged since the run started.
    pub fn text(&self, text: &str) -> anyhow::Result<Vec<Tensor>> {
        let key = self.texts.get(text);
        let key = key.with_context(|| format!("the prompt {text:?} was not encoded before"))?;
        self.cache.read(key, &self.text_form)
    }

    /// Where a text's record lies.
    pub fn text_path(&self, text: &str) -> Option<PathBuf> {
        Some(self.cache.path(self.texts.get(text)?))
    }

    /// Where the record of a sample's clip lies.
    pub fn clip_path(&self, sample: &Encoding) -> PathBuf {
        self.cache.path(&sample.key)
    }

    /// A hash of all that a run trains on, in its order: it changes where a clip, its frame rate, a caption or an encoder
    /// does.
    pub fn fingerprint(&self) -> Hash {
        let mut hasher = Hasher::new();
        for sample in &self.samples {
            let caption = self.texts.get(&sample.caption);
            for key in [Some(&sample.key), caption].into_iter().flatten() {
                hasher.update(key.hash().as_bytes());
            }
            hasher.update(&(sample.repeats as u64).to_le_bytes());
            hasher.update(&sample.fps.to_le_bytes());
        }
        hasher.finalize()
    }

    /// The samples that [`fingerprint`](Self::fingerprint) is taken of.
    pub fn list(&self) -> Vec<Listed> {
        let short = |key: &Key| key.hash().to_hex()[..16].to_string();
        let listed = |sample: &Encoding| Listed {
            video: sample.video.display().to_string(),
            clip: short(&sample.key),
            caption: self.texts.get(&sample.caption).map(short).unwrap_or_default(),
            repeats: sample.repeats,
        };
        self.samples.iter().map(listed).collect()
    }

    /// Frames a second of a sample.
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
