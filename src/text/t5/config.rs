//! Configuration of a T5 or UMT5 encoder: `text_encoder/config.json`, as transformers writes it.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::diffusers_config::{self as config, SIZE};

/// Upper limit for buckets, more than any encoder uses.
const MAX_BUCKETS: usize = 1 << 16;

/// Sizes and choices that the computation depends on; the defaults are transformers', those of T5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// T5 or UMT5.
    pub model_type: ModelType,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of a token.
    pub d_model: usize,
    /// Features per head.
    pub d_kv: usize,
    /// Width inside of the feed-forward layers.
    pub d_ff: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Heads of the attention.
    pub num_heads: usize,
    /// Buckets of relative distances.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all tokens share the last bucket.
    pub relative_attention_max_distance: usize,
    /// Epsilon of the norms.
    pub layer_norm_epsilon: f64,
    /// Kind of feed-forward layer.
    pub feed_forward_proj: FeedForwardProj,
}

/// Encoder architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelType {
    /// All blocks use the first one's bias on attention scores.
    T5,
    /// Each block has a bias of its own.  arXiv:2304.09151
    Umt5,
}

/// Kinds of feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedForwardProj {
    /// wo(relu(wi(x))), as in the first T5.
    Relu,
    /// wo(gelu(wi_0(x)) * wi_1(x)) with the tanh form of GELU, as in T5 1.1.
    GatedGelu,
}

/// Keys of T5 configs that have no effect on the encoder's computation.
const WITHOUT_EFFECT: [&str; 27] = [
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "classifier_dropout",
    "decoder_start_token_id",
    "dropout_rate",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "initializer_factor",
    "is_encoder_decoder",
    "n_positions",
    "num_decoder_layers",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pad_token_id",
    "quantization_config",
    "return_dict",
    "scale_decoder_outputs",
    "task_specific_params",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
];

impl Default for Config {
    fn default() -> Self {
        Self {
            model_type: ModelType::T5,
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: FeedForwardProj::Relu,
        }
    }
}

impl Config {
    /// Returns the bytes that embedding a text of so many tokens takes besides the weights, about: in f32 a block's
    /// feed-forward layer, its tokens, its scores, and the bias on scores.
    pub fn activation_bytes(&self, tokens: u64) -> u64 {
        const TENSORS: [u64; 3] = [3, 8, 3]; // of each kind at the same time
        let widths = [self.d_ff as u64, self.d_model as u64, self.num_heads as u64 * tokens];
        let numbers: u64 = TENSORS
            .iter()
            .zip(widths)
            .map(|(count, width)| count * width * tokens)
            .sum();
        numbers * size_of::<f32>() as u64
    }

    /// Defaults of transformers for an architecture.
    fn of(model_type: ModelType) -> Self {
        match model_type {
            ModelType::T5 => Self::default(),
            ModelType::Umt5 => Self {
                model_type,
                vocab_size: 250_112,
                d_ff: 1024,
                num_layers: 8,
                num_heads: 6,
                feed_forward_proj: FeedForwardProj::GatedGelu,
                ..Self::default()
            },
        }
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Fails for another architecture, and for a computation that this encoder does not support.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        config::text(path)
            .and_then(|text| Self::parse(&text))
            .with_context(|| path.display().to_string())
    }

    /// Parses the text of a `config.json`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut keys: Map<String, Value> = serde_json::from_str(text).context("not a JSON object")?;
        let model_type = match keys.get("model_type") {
            Some(name) => ModelType::deserialize(name).with_context(|| format!("model_type: {name}"))?,
            None => ModelType::T5,
        };
        let ours = serde_json::to_value(Self::of(model_type))?;
        for (key, value) in ours.as_object().into_iter().flatten() {
            keys.entry(key.clone()).or_insert(value.clone());
        }
        let feed_forward = keys
            .get("feed_forward_proj")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let gated = feed_forward == "gated-gelu";
        for (key, value) in &keys {
            let expected = match key.as_str() {
                key if WITHOUT_EFFECT.contains(&key) => continue,
                "is_decoder" => Value::from(false),
                // transformers derives both from feed_forward_proj, and saves them.
                "is_gated_act" => Value::from(gated),
                "dense_act_fn" => Value::from(if gated { "gelu_new" } else { feed_forward }),
                // Published with UMT5, and unused.
                "scalable_attention" if model_type == ModelType::Umt5 => continue,
                key if ours.get(key).is_some() => continue,
                _ => bail!("{key}: {value}: this key is not known, and it may change what the encoder computes"),
            };
            ensure!(*value == expected, "{key}: this encoder does {expected}, not {value}");
        }
        let config: Self = serde_path_to_error::deserialize(Value::Object(keys))?;
        config.check()?;
        Ok(config)
    }

    /// Checks that an encoder can have these sizes.
    pub fn check(&self) -> anyhow::Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
        ];
        for (key, size) in sizes {
            ensure!(SIZE.contains(&size), "{key}: {size} is not a valid size");
        }
        let (buckets, distance) = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        );
        ensure!(
            (4..=MAX_BUCKETS).contains(&buckets) && buckets.is_multiple_of(2),
            "relative_attention_num_buckets: {buckets} cannot be split into two directions of near and far"
        );
        ensure!(
            (buckets / 4 + 1..=*SIZE.end()).contains(&distance),
            "relative_attention_max_distance: {distance} must be beyond the {} near buckets",
            buckets / 4
        );
        let epsilon = self.layer_norm_epsilon;
        ensure!(epsilon.is_finite() && epsilon >= 0.0, "layer_norm_epsilon: {epsilon}");
        Ok(())
    }
}
