//! CLIP's text transformer: token ids to one vector.  arXiv:2103.00020; equals `CLIPTextModel(...).pooler_output` of
//! transformers.
//!
//! Tokens with learnt positions; blocks of causal attention; a norm. The vector is that of the end token, which has seen the
//! whole text, so padding behind it need not be computed.
//!
//! Shapes: L tokens, D = hidden_size.

use std::path::Path;

use anyhow::{Context, ensure};
use candle_core::{Result, Tensor};
use serde::Deserialize;

use crate::diffusers_config::{self as config, SIZE};
use crate::nn::clip_layer::{Activation, ClipLayer, ClipLayerSpec};
use crate::nn::{Norm, Weights};

use super::causal::causal_mask;

/// Keys of CLIP's text configs that have no effect on the computation.
const WITHOUT_EFFECT: [&str; 22] = [
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dropout",
    "dtype",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "projection_dim",
    "quantization_config",
    "return_dict",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
];

/// `eos_token_id` of the first published configs, which is wrong: their end token is the one with the largest id.
const LARGEST: u32 = 2;

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
    /// Heads of the attention.
    pub num_attention_heads: usize,
    /// Tokens of the longest text.
    pub max_position_embeddings: usize,
    hidden_act: Activation,
    layer_norm_eps: f64,
    /// End token; 2 stands for the largest id of a text.
    eos_token_id: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ModelType {
    ClipTextModel,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model_type: ModelType::ClipTextModel,
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49_407,
        }
    }
}

impl Config {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Names the file and key: another model than a CLIP text model, or one that makes no sense.
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
            ("num_hidden_layers", self.num_hidden_layers),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            ensure!(SIZE.contains(&size), "{key}: {size} is not a valid size");
        }
        self.layer().check()
    }

    fn layer(&self) -> ClipLayerSpec {
        ClipLayerSpec {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_attention_heads: self.num_attention_heads,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        }
    }

    /// Returns the place of the end token; the first place if there is none, like transformers.
    fn end(&self, ids: &[u32]) -> usize {
        let end = match self.eos_token_id {
            LARGEST => ids.iter().max().copied(),
            id => Some(id),
        };
        ids.iter().position(|id| Some(*id) == end).unwrap_or(0)
    }
}

/// The encoder with its weights.
#[derive(Debug)]
pub struct ClipText {
    config: Config,
    token_embedding: Tensor,    // (vocabulary, D)
    position_embedding: Tensor, // (positions, D)
    layers: Vec<ClipLayer>,
    final_layer_norm: Norm,
}

impl ClipText {
    /// Reads the weights from the root of their checkpoint, with or without a prefix `text_model`.
    ///
    /// # Errors
    /// Fails for a missing tensor, one of another shape than in the config, or an unexpected one.
    pub fn new(config: &Config, weights: Weights) -> anyhow::Result<Self> {
        let published = weights.pp("text_model");
        let root = match published.contains("final_layer_norm.weight") {
            true => published,
            false => weights.clone(),
        };
        let (embeddings, layers) = (root.pp("embeddings"), root.pp("encoder.layers"));
        let table = |name: &str, rows| embeddings.pp(name).get((rows, config.hidden_size), "weight");
        let this = Self {
            token_embedding: table("token_embedding", config.vocab_size)?,
            position_embedding: table("position_embedding", config.max_position_embeddings)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| ClipLayer::new(config.layer(), &layers.pp(i)))
                .collect::<Result<_>>()?,
            final_layer_norm: Norm::layer(config.hidden_size, config.layer_norm_eps, root.pp("final_layer_norm"))?,
            config: config.clone(),
        };
        let positions = match root.prefix() {
            "" => "embeddings.position_ids".to_string(),
            prefix => format!("{prefix}.embeddings.position_ids"),
        };
        weights.finish(&[&positions, "text_projection."])?;
        Ok(this)
    }

    /// Returns the vector of a text's end token: (1, D).
    ///
    /// # Errors
    /// Fails for no ids, for more than there are positions, and for ids beyond the vocabulary.
    pub fn pooled(&self, ids: &[u32]) -> Result<Tensor> {
        let Config {
            vocab_size,
            max_position_embeddings,
            ..
        } = self.config;
        if ids.is_empty() || ids.len() > max_position_embeddings {
            candle_core::bail!(
                "{} tokens; this text encoder takes 1 to {max_position_embeddings}",
                ids.len()
            );
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            candle_core::bail!("the token id {id} is beyond the text encoder's {vocab_size} embeddings");
        }
        let count = self.config.end(ids) + 1;
        let ids = Tensor::from_slice(&ids[..count], count, self.token_embedding.device())?;
        let positions = self.position_embedding.narrow(0, 0, count)?;
        let mut x = (self.token_embedding.index_select(&ids, 0)? + positions)?.unsqueeze(0)?; // (1, L, D)
        let mask = causal_mask(count, x.device())?;
        for layer in &self.layers {
            x = layer.forward(x, Some(&mask))?; // (1, L, D)
        }
        self.final_layer_norm.forward(&x.narrow(1, count - 1, 1)?)?.squeeze(1) // (1, D)
    }
}
