//! LLaVA as a text encoder that sees a picture: arXiv:2304.08485; equals
//! `LlavaForConditionalGeneration(...).hidden_states[-(skipped + 1)]` of transformers.
//!
//! CLIP's embeddings of the picture's patches, without that of its class token, pass through two linear layers and take the
//! place of the picture's token among the embeddings of the text; LLaMA reads them all.
//!
//! Shapes: L tokens of the text, N patches of the picture, D LLaMA's width.

use std::path::Path;

use anyhow::{Context, ensure};
use candle_core::{DType, Result, Tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::diffusers_config as config;
use crate::nn::{Linear, Weights};
use crate::ops::activation::gelu_erf;
use crate::text::{Llama, llama};
use crate::vision::{ClipVision, clip};

/// Keys of LLaVA configs that have no effect on the computation.
const WITHOUT_EFFECT: [&str; 21] = [
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "ignore_index",
    "image_seq_length",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "quantization_config",
    "return_dict",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_image_newline_parameter",
];

/// Sizes that the computation depends on: `text_encoder/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// LLaMA's.
    pub text: llama::Config,
    /// CLIP's.
    pub vision: clip::Config,
    /// Token that stands for the picture.
    pub image_token_index: u32,
    multimodal_projector_bias: bool,
}

/// The same as it is written; the defaults are transformers'.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    model_type: ModelType,
    text_config: Value,
    vision_config: Value,
    image_token_index: u32,
    projector_hidden_act: Activation,
    vision_feature_layer: i64,
    vision_feature_select_strategy: Selection,
    multimodal_projector_bias: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModelType {
    Llava,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Activation {
    Gelu,
}

/// Use of the class token.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Selection {
    /// It is left out.
    Default,
}

/// The layer whose embeddings are used: the only one that [`ClipVision`] computes.
const VISION_FEATURE_LAYER: i64 = -2;

/// `image_token_index` of a config without it.
const IMAGE_TOKEN_INDEX: u32 = 32_000;

impl Default for Written {
    fn default() -> Self {
        Self {
            model_type: ModelType::Llava,
            text_config: Value::Null,
            vision_config: Value::Null,
            image_token_index: IMAGE_TOKEN_INDEX,
            projector_hidden_act: Activation::Gelu,
            vision_feature_layer: VISION_FEATURE_LAYER,
            vision_feature_select_strategy: Selection::Default,
            multimodal_projector_bias: true,
        }
    }
}

impl Config {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Names the file and key: another model than a LLaVA of LLaMA and CLIP, or one that makes no sense.
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
        let Written {
            model_type: ModelType::Llava,
            projector_hidden_act: Activation::Gelu,
            vision_feature_select_strategy: Selection::Default,
            text_config,
            vision_config,
            image_token_index,
            vision_feature_layer,
            multimodal_projector_bias,
        } = config::of_transformers(text, &WITHOUT_EFFECT)?;
        ensure!(
            vision_feature_layer == VISION_FEATURE_LAYER,
            "vision_feature_layer: only {VISION_FEATURE_LAYER} is supported, got {vision_feature_layer}"
        );
        Ok(Self {
            text: llama::Config::parse(&text_config.to_string()).context("text_config")?,
            vision: clip::Config::parse(&vision_config.to_string()).context("vision_config")?,
            image_token_index,
            multimodal_projector_bias,
        })
    }

    /// Returns the embeddings of a picture: N.
    pub fn image_tokens(&self) -> usize {
        self.vision.tokens() - 1
    }
}

/// The encoder with its weights.
#[derive(Debug)]
pub struct Llava {
    config: Config,
    vision_tower: ClipVision,
    linear_1: Linear,
    linear_2: Linear,
    language_model: Llama,
}

impl Llava {
    /// Reads LLaMA's blocks but for the last `skipped`, CLIP and what joins them from the root of their checkpoint, with or
    /// without a prefix `model`.
    ///
    /// # Errors
    /// Fails for a missing tensor, one of another shape than in the config, and an unexpected one.
    pub fn new(config: &Config, skipped: usize, weights: Weights) -> anyhow::Result<Self> {
        let published = weights.pp("model");
        let projector = "multi_modal_projector.linear_1.weight";
        let root = match published.contains(projector) {
            true => published,
            false => weights.clone(),
        };
        let (vision, text) = (root.pp("vision_tower"), root.pp("language_model"));
        let projector = root.pp("multi_modal_projector");
        let (inner, width) = (config.vision.hidden_size, config.text.hidden_size);
        let (vision_tower, mut unused) = ClipVision::read(&config.vision, &vision)?;
        let (language_model, more) = Llama::read(&config.text, skipped, &text)?;
        unused.extend(more);
        unused.push("lm_head.".into());
        let bias = config.multimodal_projector_bias;
        let this = Self {
            vision_tower,
            linear_1: Linear::new(inner, width, bias, projector.pp("linear_1"))?,
            linear_2: Linear::new(width, width, bias, projector.pp("linear_2"))?,
            language_model,
            config: config.clone(),
        };
        weights.finish(&unused.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(this)
    }

    /// Returns the embeddings of a picture (1, 3, S, S), as preprocessed: (1, N, D).
    fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        let x = self.vision_tower.forward(pixels)?; // (1, 1 + N, W)
        let x = x.narrow(1, 1, x.dim(1)? - 1)?; // without the class token
        self.linear_2.forward(&gelu_erf(&self.linear_1.forward(&x)?)?)
    }

    /// Returns the hidden states of a text without padding, of which one token stands for the picture (1, 3, S, S):
    /// (1, L - 1 + N, D), of the weights' type.
    ///
    /// # Errors
    /// Fails for a text with no such token, or with several, and for ids beyond the vocabulary.
    pub fn forward(&self, ids: &[u32], pixels: &Tensor) -> Result<Tensor> {
        let image = self.config.image_token_index;
        let places: Vec<usize> = (0..ids.len()).filter(|i| ids[*i] == image).collect();
        let [place] = places[..] else {
            candle_core::bail!(
                "{} tokens of the text stand for the picture (id {image}); it must be one",
                places.len()
            );
        };
        let (before, behind) = (&ids[..place], &ids[place + 1..]);
        let features = self.image_features(pixels)?; // (1, N, D)
        let mut parts = Vec::new();
        for ids in [before, behind].into_iter().filter(|ids| !ids.is_empty()) {
            parts.push(self.language_model.embed(ids)?); // (1, ..., D) f32
        }
        parts.insert(usize::from(!before.is_empty()), features.to_dtype(DType::F32)?);
        self.language_model.forward(&Tensor::cat(&parts, 1)?)
    }
}
