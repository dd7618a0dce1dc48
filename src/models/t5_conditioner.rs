//! T5-like text encoders with their tokenizers: prompts to embeddings.
//!
//! Shapes: L tokens, D text width.

use anyhow::Context;
use candle_core::{DType, Device, Tensor};

use super::checkpoint_dir::part;
use super::encoders::TextEncoder;
use super::text_embeds::TextEmbeds;
use crate::nn::{Load, WeightFolder, Weights};
use crate::text::clean::{caption_clean, prompt_clean};
use crate::text::{Encoding, TextTokenizer, t5};

/// Tables that are looked up, not multiplied by.
pub const EMBEDDINGS: &[&str] = &["shared.", "embed_tokens.", "relative_attention_bias."];

/// Treatment of the padding after a prompt's own tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Encoded, and attended to like all else.
    Counts,
    /// Encoded, and masked in the network.
    Masked,
    /// Zeros. The prompt is cleaned first (`prompt_clean`).
    Zeros,
    /// Zeros, and masked in the network. With `empty`, an empty prompt is padding alone, without its end token.
    ZerosMasked {
        /// `force_zeros_for_empty_prompt` of the pipeline.
        empty: bool,
    },
    /// Masked in the encoder and in the network. The prompt is cleaned first as a caption (`caption_clean`).
    MaskedThroughout,
}

/// A text encoder and its tokenizer.
pub struct T5Conditioner {
    tokenizer: TextTokenizer,
    encoder: t5::T5Encoder,
    /// Length in tokens, including padding.
    length: usize,
    padding: Padding,
    device: Device,
}

impl T5Conditioner {
    /// Folders of a checkpoint that it reads.
    pub const PARTS: &'static [&'static str] = &["tokenizer", "text_encoder"];

    /// Loads the conditioner of the checkpoint in `directory`.
    pub fn load(
        directory: &WeightFolder,
        length: usize,
        padding: Padding,
        load: &Load,
    ) -> anyhow::Result<Box<dyn TextEncoder>> {
        let tokenizer = TextTokenizer::open(&part(directory, "tokenizer")?)?;
        let folder = part(directory, "text_encoder")?;
        let config = t5::Config::load(&folder.join("config.json"))?;
        let weights = Weights::read(&folder, load)?.quantized(load.quantization.text_encoder, EMBEDDINGS);
        weights.ensure_memory(&[])?;
        weights.ensure_space()?;
        Ok(Box::new(Self {
            tokenizer,
            encoder: t5::T5Encoder::new(&config, weights).with_context(|| folder.display().to_string())?,
            length,
            padding,
            device: load.device.clone(),
        }))
    }
}

impl T5Conditioner {
    fn tokens(&self, prompt: &str) -> anyhow::Result<Encoding> {
        match self.padding {
            Padding::Zeros => self.tokenizer.encode_padded(&prompt_clean(prompt), self.length),
            Padding::MaskedThroughout => self.tokenizer.encode_padded(&caption_clean(prompt), self.length),
            Padding::Counts | Padding::Masked | Padding::ZerosMasked { .. } => {
                self.tokenizer.encode_padded(prompt, self.length)
            }
        }
    }
}

impl TextEncoder for T5Conditioner {
    fn truncated_tokens(&self, prompt: &str) -> anyhow::Result<usize> {
        Ok(self.tokens(prompt)?.truncated)
    }

    fn embed(&self, prompt: &str, _picture: Option<&Tensor>) -> anyhow::Result<TextEmbeds> {
        let (length, mut encoding) = (self.length, self.tokens(prompt)?);
        if self.padding == (Padding::ZerosMasked { empty: true }) && prompt.is_empty() {
            encoding.mask.fill(0);
        }
        let count = encoding.mask.iter().filter(|is_token| **is_token != 0).count();
        let row = (1, length);
        let hidden = match self.padding {
            Padding::Zeros | Padding::ZerosMasked { .. } | Padding::MaskedThroughout => {
                self.encoder.forward_padded(&encoding.ids[..count], length)?
            }
            Padding::Counts | Padding::Masked => {
                let ids = Tensor::from_vec(encoding.ids, row, &self.device)?;
                self.encoder.forward(&ids, None)?
            }
        }; // (1, L, D)
        let mask = match self.padding {
            Padding::Counts | Padding::Zeros => None,
            Padding::Masked | Padding::ZerosMasked { .. } | Padding::MaskedThroughout => {
                let mask = Tensor::from_vec(encoding.mask, row, &self.device)?;
                Some(mask.to_dtype(DType::F32)?)
            }
        };
        Ok(TextEmbeds {
            hidden,
            mask,
            pooled: None,
        })
    }
}
