//! T5 and its kin behind their tokenizers: prompts as a network takes them.
//!
//! Shapes: L tokens, D text width.

use anyhow::Context;
use candle_core::{DType, Device, Tensor};

use super::denoiser::Text;
use super::family::Conditioner;
use super::part;
use crate::nn::weights::Reading;
use crate::nn::{WeightFolder, Weights};
use crate::text::clean::prompt_clean;
use crate::text::{Encoding, TextTokenizer, t5};

/// What becomes of the tokens behind a prompt's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// They are encoded, and the network attends to them as to all else.
    Counts,
    /// They are encoded, and the network is told which they are.
    Masked,
    /// They are zeros. The prompt is tidied up first (`prompt_clean`).
    Zeros,
}

/// A text encoder and its tokenizer.
pub struct Prompts {
    tokenizer: TextTokenizer,
    encoder: t5::T5Encoder,
    /// In tokens, padding included.
    length: usize,
    padding: Padding,
    device: Device,
}

impl Prompts {
    /// The folders of a checkpoint that it reads.
    pub const PARTS: &'static [&'static str] = &["tokenizer", "text_encoder"];

    /// Those of the checkpoint in `directory`.
    pub fn load(
        directory: &WeightFolder,
        length: usize,
        padding: Padding,
        reading: &Reading,
    ) -> anyhow::Result<Box<dyn Conditioner>> {
        let tokenizer = TextTokenizer::open(&part(directory, "tokenizer")?)?;
        let folder = part(directory, "text_encoder")?;
        let config = t5::Config::load(&folder.join("config.json"))?;
        let weights = Weights::read(&folder, reading)?;
        weights.ensure_memory(&[])?;
        Ok(Box::new(Self {
            tokenizer,
            encoder: t5::T5Encoder::new(&config, weights).with_context(|| folder.display().to_string())?,
            length,
            padding,
            device: reading.device.clone(),
        }))
    }
}

impl Prompts {
    fn tokens(&self, prompt: &str) -> anyhow::Result<Encoding> {
        match self.padding {
            Padding::Zeros => self.tokenizer.encode_padded(&prompt_clean(prompt), self.length),
            Padding::Counts | Padding::Masked => self.tokenizer.encode_padded(prompt, self.length),
        }
    }
}

impl Conditioner for Prompts {
    fn lost_tokens(&self, prompt: &str) -> anyhow::Result<usize> {
        Ok(self.tokens(prompt)?.truncated)
    }

    fn embed(&self, prompt: &str) -> anyhow::Result<Text> {
        let (length, encoding) = (self.length, self.tokens(prompt)?);
        if self.padding == Padding::Zeros {
            let count = encoding.mask.iter().filter(|is_token| **is_token != 0).count();
            return Ok(self.encoder.forward_padded(&encoding.ids[..count], length)?.into()); // (1, L, D)
        }
        let row = (1, length);
        let ids = Tensor::from_vec(encoding.ids, row, &self.device)?;
        let mask = Tensor::from_vec(encoding.mask, row, &self.device)?.to_dtype(DType::F32)?;
        Ok(Text {
            hidden: self.encoder.forward(&ids, None)?, // (1, L, D)
            mask: (self.padding == Padding::Masked).then_some(mask),
        })
    }
}
