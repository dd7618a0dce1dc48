//! LLaVA in a chat template, with CLIP: a prompt and the picture that it goes with, to the hidden states of both.
//!
//! The picture's hidden states come first, of which every few are kept; then those of the prompt, without the instruction
//! before it and the header of the answer behind it. Equals `_get_llama_prompt_embeds` of diffusers'
//! HunyuanVideoImageToVideoPipeline; padding, which is masked in the network, is zeros here.
//!
//! In the pipeline LLaVA gets the original picture, here the picture at the clip's size. Both are the same if nothing is
//! resized.
//!
//! Shapes: L tokens, D text width, P pooled width.

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};

use super::checkpoint_dir::part;
use super::encoders::TextEncoder;
use super::llama_conditioner::{ChatTemplate, Pooling, SKIPPED_BLOCKS};
use super::llava::{self, Llava};
use super::t5_conditioner::EMBEDDINGS;
use super::text_embeds::TextEmbeds;
use crate::nn::{Load, WeightFolder, Weights};
use crate::text::{Encoding, TextTokenizer};
use crate::vision::Preprocessor;

/// Token at the end of each header of a chat.
const END_OF_HEADER: &str = "<|end_header_id|>";

/// Tokens of the answer's header, up to the one at its end, which are left out.
const ANSWER_HEADER: usize = 4;

/// Template of a prompt with a picture.
#[derive(Debug, Clone, Copy)]
pub struct PictureTemplate {
    /// Text around the prompt, with a token that stands for the picture.
    pub chat: ChatTemplate,
    /// Tokens of the picture of which one is kept.
    pub interleave: usize,
}

impl PictureTemplate {
    /// Returns the tokens of a prompt with its picture, including padding: L.
    pub fn tokens(&self, config: &llava::Config) -> usize {
        self.chat.tokens - ANSWER_HEADER + config.image_tokens().div_ceil(self.interleave)
    }
}

/// LLaVA and CLIP with their tokenizers.
pub struct LlavaConditioner {
    tokenizer: TextTokenizer,
    end_of_header: u32,
    preprocessor: Preprocessor,
    llava: Llava,
    pooling: Pooling,
    template: PictureTemplate,
    image_token: u32,
    image_tokens: usize,
    device: Device,
}

impl LlavaConditioner {
    /// Folders of a checkpoint that it reads.
    pub const PARTS: &'static [&'static str] = &[
        "tokenizer",
        "text_encoder",
        "tokenizer_2",
        "text_encoder_2",
        "image_processor",
    ];

    /// Loads the conditioner of the checkpoint in `directory`.
    pub fn load(
        directory: &WeightFolder,
        config: &llava::Config,
        template: PictureTemplate,
        load: &Load,
    ) -> anyhow::Result<Box<dyn TextEncoder>> {
        let (tokenizer, folder) = (part(directory, "tokenizer")?, part(directory, "text_encoder")?);
        let weights = Weights::read(&folder, load)?.quantized(load.quantization.text_encoder, EMBEDDINGS);
        weights.ensure_memory(&[])?;
        let tokens = TextTokenizer::open(&tokenizer)?;
        Ok(Box::new(Self {
            end_of_header: tokens
                .id(END_OF_HEADER)
                .with_context(|| format!("{}: has no token {END_OF_HEADER}", tokenizer.display()))?,
            tokenizer: tokens,
            preprocessor: Preprocessor::load(&part(directory, "image_processor")?)?,
            llava: Llava::new(config, SKIPPED_BLOCKS, weights).with_context(|| folder.display().to_string())?,
            pooling: Pooling::load(directory, load)?,
            template,
            image_token: config.image_token_index,
            image_tokens: config.image_tokens(),
            device: load.device.clone(),
        }))
    }

    fn tokens(&self, prompt: &str) -> anyhow::Result<Encoding> {
        self.template.chat.encode(&self.tokenizer, prompt)
    }

    /// Returns the place behind the last header; of a text that was cut off before it, the end.
    fn answer(&self, ids: &[u32]) -> usize {
        const HEADERS: usize = 3;
        let places: Vec<usize> = (0..ids.len()).filter(|i| ids[*i] == self.end_of_header).collect();
        match places.len() >= HEADERS {
            true => places[places.len() - 1] + 1,
            false => ids.len(),
        }
    }
}

impl TextEncoder for LlavaConditioner {
    fn truncated_tokens(&self, prompt: &str) -> anyhow::Result<usize> {
        Ok(self.tokens(prompt)?.truncated)
    }

    fn embed(&self, prompt: &str, picture: Option<&Tensor>) -> anyhow::Result<TextEmbeds> {
        let pixels = match picture {
            Some(picture) => self.preprocessor.of_tensor(picture)?,
            None => self.preprocessor.black(&self.device)?,
        };
        let Encoding { ids, mask, .. } = self.tokens(prompt)?;
        let count = mask.iter().filter(|is_token| **is_token != 0).count();
        let (cropped, answer) = (self.template.chat.cropped, self.answer(&ids));
        ensure!(
            answer >= cropped + ANSWER_HEADER,
            "the text around the prompt has fewer tokens than the {cropped} that are cut off before it; this is not the \
             tokenizer of the checkpoint"
        );
        let hidden = self.llava.forward(&ids[..count], &pixels)?; // (1, count - 1 + N, D)
        // A token of the text is behind the picture's tokens, which took the place of one.
        let text = |from: usize, to: usize| {
            let (from, to) = (from.min(count), to.min(count));
            hidden.narrow(1, from + self.image_tokens - 1, to - from)
        };
        let before = ids.iter().position(|id| *id == self.image_token).unwrap_or(0);
        let kept = (0..self.image_tokens).step_by(self.template.interleave);
        let kept: Vec<u32> = kept.map(|i| (before + i) as u32).collect();
        let picture_tokens = hidden.index_select(&Tensor::new(&kept[..], &self.device)?, 1)?;
        let (first, rest) = (text(cropped, answer - ANSWER_HEADER)?, text(answer, ids.len())?);
        let own = Tensor::cat(&[&picture_tokens, &first, &rest], 1)?; // (1, L', D)
        let missing = self.template.chat.tokens - ANSWER_HEADER - first.dim(1)? - rest.dim(1)?;
        let (length, device) = (own.dim(1)?, &self.device);
        let mask = Tensor::ones((1, length), DType::F32, device)?.pad_with_zeros(1, 0, missing)?;
        Ok(TextEmbeds {
            hidden: own.pad_with_zeros(1, 0, missing)?, // (1, L, D)
            mask: Some(mask),
            pooled: Some(self.pooling.forward(prompt)?), // (1, P)
        })
    }
}
