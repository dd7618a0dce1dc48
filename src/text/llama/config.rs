//! Configuration of a LLaMA: `text_encoder/config.json`, as transformers writes it.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::diffusers_config::{self as config, SIZE};

/// Keys of LLaMA configs that have no effect on the computation.
const WITHOUT_EFFECT: [&str; 25] = [
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "max_position_embeddings",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "quantization_config",
    "return_dict",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// Sizes that the computation depends on; the defaults are transformers'.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    model_type: ModelType,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of a token.
    pub hidden_size: usize,
    /// Width inside of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of queries.
    pub num_attention_heads: usize,
    /// Heads of keys and values; None: as many as of queries.
    pub num_key_value_heads: Option<usize>,
    /// Features of a head; None: the width, divided among the heads.
    pub head_dim: Option<usize>,
    hidden_act: Activation,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary angles; `rope_parameters` may have it instead.
    rope_theta: Option<f32>,
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    attention_bias: bool,
    mlp_bias: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModelType {
    Llama,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Activation {
    Silu,
}

/// Rotary angles; those that grow slower for long texts are not supported.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rope {
    rope_theta: Option<f32>,
    #[serde(alias = "type")]
    rope_type: Option<RopeType>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RopeType {
    Default,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model_type: ModelType::Llama,
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            rms_norm_eps: 1e-6,
            rope_theta: None,
            rope_parameters: None,
            rope_scaling: None,
            attention_bias: false,
            mlp_bias: false,
        }
    }
}

impl Config {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Names the file and key: another model than a LLaMA, rotary angles that are scaled, or sizes that make no sense.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        config::text(path)
            .and_then(|text| Self::parse(&text))
            .with_context(|| path.display().to_string())
    }

    /// Parses the text of a `config.json`.
    ///
    /// # Errors
    /// Same as [`load`](Self::load).
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = config::of_transformers(text, &WITHOUT_EFFECT)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> anyhow::Result<()> {
        for (key, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.key_value_heads()),
            ("head_dim", self.head_width()),
        ] {
            ensure!(SIZE.contains(&size), "{key}: {size} is not a valid size");
        }
        ensure!(
            self.num_attention_heads.is_multiple_of(self.key_value_heads()),
            "num_key_value_heads: {} do not divide the {} heads of queries",
            self.key_value_heads(),
            self.num_attention_heads
        );
        ensure!(
            self.head_width().is_multiple_of(2),
            "head_dim: {} features cannot be paired",
            self.head_width()
        );
        ensure!(
            self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0,
            "rms_norm_eps: {}",
            self.rms_norm_eps
        );
        let theta = self.theta();
        ensure!(theta.is_finite() && theta > 0.0, "rope_theta: {theta}");
        for (key, bias) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)] {
            ensure!(!bias, "{key}: biases are not supported");
        }
        Ok(())
    }

    /// Returns the bytes that embedding a text of so many tokens takes besides the weights, about: in f32 a block's
    /// feed-forward layer, and its tokens.
    pub fn activation_bytes(&self, tokens: u64) -> u64 {
        const TENSORS: [u64; 2] = [3, 8]; // of each kind at the same time
        let widths = [self.intermediate_size as u64, self.hidden_size as u64];
        let numbers: u64 = TENSORS
            .iter()
            .zip(widths)
            .map(|(count, width)| count * width * tokens)
            .sum();
        numbers * size_of::<f32>() as u64
    }

    /// Returns the tensors below `root` that are not read if the last `skipped` blocks are not run, by the starts of their
    /// names.
    pub fn unread(&self, skipped: usize, root: &str) -> Vec<String> {
        let blocks = self.num_hidden_layers.saturating_sub(skipped)..self.num_hidden_layers;
        let blocks = blocks.map(|i| format!("{root}layers.{i}."));
        [format!("{root}norm.")].into_iter().chain(blocks).collect()
    }

    /// Returns the heads of keys and values.
    pub fn key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Returns the features of a head.
    pub fn head_width(&self) -> usize {
        self.head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Returns the base of the rotary angles.
    pub fn theta(&self) -> f32 {
        const USUAL: f32 = 10_000.0;
        let named = self.rope_parameters.and_then(|rope| rope.rope_theta);
        named.or(self.rope_theta).unwrap_or(USUAL)
    }
}
