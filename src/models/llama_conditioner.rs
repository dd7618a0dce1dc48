//! LLaMA in a chat template, with CLIP: a prompt to the hidden states of its own tokens, and to one vector.
//!
//! LLaMA reads an instruction, the prompt and what ends it; the instruction's hidden states are cut off. Padding is masked
//! in the network, so its states need not be computed: they are zeros.
//!
//! Shapes: L tokens, D text width, P pooled width.

use anyhow::Context;
use candle_core::{DType, Device, Tensor};

use super::checkpoint_dir::part;
use super::encoders::TextEncoder;
use super::t5_conditioner::EMBEDDINGS;
use super::text_embeds::TextEmbeds;
use crate::nn::residency::Residency;
use crate::nn::{Load, WeightFolder, Weights};
use crate::text::{ClipText, Encoding, Llama, TextTokenizer, clip_text, llama};

/// Blocks at LLaMA's end that are not run.
pub const SKIPPED_BLOCKS: usize = 2;

/// Tokens of CLIP's longest text.
const CLIP_TOKENS: usize = 77;

/// Text around a prompt.
#[derive(Debug, Clone, Copy)]
pub struct ChatTemplate {
    /// Text before it.
    pub before: &'static str,
    /// Text behind it.
    pub after: &'static str,
    /// Tokens before it, which are cut off; with the start token.
    pub cropped: usize,
    /// Tokens of the prompt with what is behind it, including padding.
    pub tokens: usize,
}

impl ChatTemplate {
    /// Returns the ids of a prompt in the template, `cropped + tokens` of them.
    pub fn encode(&self, tokenizer: &TextTokenizer, prompt: &str) -> anyhow::Result<Encoding> {
        let Self { before, after, .. } = self;
        tokenizer.encode_padded(&format!("{before}{prompt}{after}"), self.cropped + self.tokens)
    }
}

/// CLIP with its tokenizer: a prompt to one vector. It is small, and its weights are never stored in fewer bits.
pub struct Pooling {
    tokenizer: TextTokenizer,
    encoder: ClipText,
}

impl Pooling {
    /// Loads `tokenizer_2` and `text_encoder_2` of the checkpoint in `directory`.
    pub fn load(directory: &WeightFolder, load: &Load) -> anyhow::Result<Self> {
        let folder = part(directory, "text_encoder_2")?;
        let config = clip_text::Config::load(&folder.join("config.json"))?;
        let whole = load.with_residency(Residency::Whole);
        let weights = Weights::read(&folder, &whole)?;
        weights.ensure_memory(&[])?;
        Ok(Self {
            tokenizer: TextTokenizer::open(&part(directory, "tokenizer_2")?)?,
            encoder: ClipText::new(&config, weights).with_context(|| folder.display().to_string())?,
        })
    }

    /// Returns the vector of a prompt, of which CLIP reads the first 77 tokens: (1, P).
    pub fn forward(&self, prompt: &str) -> anyhow::Result<Tensor> {
        let ids = self.tokenizer.encode_padded(prompt, CLIP_TOKENS)?.ids;
        Ok(self.encoder.pooled(&ids)?)
    }
}

/// LLaMA and CLIP with their tokenizers.
pub struct LlamaConditioner {
    tokenizer: TextTokenizer,
    llama: Llama,
    pooling: Pooling,
    template: ChatTemplate,
    device: Device,
}

impl LlamaConditioner {
    /// Folders of a checkpoint that it reads.
    pub const PARTS: &'static [&'static str] = &["tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"];

    /// Loads the conditioner of the checkpoint in `directory`.
    pub fn load(directory: &WeightFolder, template: ChatTemplate, load: &Load) -> anyhow::Result<Box<dyn TextEncoder>> {
        let folder = part(directory, "text_encoder")?;
        let config = llama::Config::load(&folder.join("config.json"))?;
        let weights = Weights::read(&folder, load)?.quantized(load.quantization.text_encoder, EMBEDDINGS);
        weights.ensure_memory(&[])?;
        Ok(Box::new(Self {
            tokenizer: TextTokenizer::open(&part(directory, "tokenizer")?)?,
            llama: Llama::new(&config, SKIPPED_BLOCKS, weights).with_context(|| folder.display().to_string())?,
            pooling: Pooling::load(directory, load)?,
            template,
            device: load.device.clone(),
        }))
    }
}

impl TextEncoder for LlamaConditioner {
    fn truncated_tokens(&self, prompt: &str) -> anyhow::Result<usize> {
        Ok(self.template.encode(&self.tokenizer, prompt)?.truncated)
    }

    fn embed(&self, prompt: &str, _picture: Option<&Tensor>) -> anyhow::Result<TextEmbeds> {
        let ChatTemplate { cropped, tokens, .. } = self.template;
        let Encoding { ids, mask, .. } = self.template.encode(&self.tokenizer, prompt)?;
        let count = mask.iter().filter(|is_token| **is_token != 0).count();
        let hidden = self.llama.forward(&self.llama.embed(&ids[..count])?)?; // (1, count, D)
        let own = count.saturating_sub(cropped);
        let mask = Tensor::from_slice(&mask[cropped..], (1, tokens), &self.device)?;
        Ok(TextEmbeds {
            hidden: hidden.narrow(1, count - own, own)?.pad_with_zeros(1, 0, tokens - own)?, // (1, L, D)
            mask: Some(mask.to_dtype(DType::F32)?),
            pooled: Some(self.pooling.forward(prompt)?), // (1, P)
        })
    }
}
