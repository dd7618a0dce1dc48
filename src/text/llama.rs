//! LLaMA as a text encoder: token ids to hidden states of an inner block.  arXiv:2302.13971, arXiv:2407.21783; equals
//! `LlamaModel(...).hidden_states[-(skipped + 1)]` of transformers.
//!
//! Blocks of causal self-attention with rotary positions, whose keys and values several heads of queries share, and of
//! silu(gate_proj(x)) * up_proj(x): x += attention(norm(x)); x += feed_forward(norm(x)). Since a token sees only those before
//! it, padding behind a text need not be computed. The residual x and the norms are in f32. The last blocks are neither run
//! nor loaded.
//!
//! Shapes: L tokens, D = hidden_size, F = intermediate_size, H heads of queries and G of keys and values, of K features.

mod config;

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use crate::nn::lent::LentBlocks;
use crate::nn::rope::{Axis, PairLayout, Rotary};
use crate::nn::{Norm, Weights};
use crate::ops::activation::silu;
use crate::ops::attention::attention;

use super::causal::causal_mask;
use super::projection::Projection;

pub use config::Config;

/// Linear layers of a block, by the ends of their paths.
const LINEAR: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// Returns true for a linear layer that transformers stores in few bits.
pub fn is_linear(layer: &str) -> bool {
    LINEAR.iter().any(|end| layer.ends_with(end))
}

/// The encoder with its weights.
#[derive(Debug)]
pub struct Llama {
    config: Config,
    embed_tokens: Tensor, // (vocabulary, D)
    layers: Vec<Layer>,
    /// Lent matrices of the blocks, if any.
    lent: Option<Arc<LentBlocks>>,
}

/// One block.
#[derive(Debug)]
struct Layer {
    input_layernorm: Norm,
    self_attn: SelfAttention,
    post_attention_layernorm: Norm,
    gate_proj: Projection, // (F, D)
    up_proj: Projection,   // (F, D)
    down_proj: Projection, // (D, F)
}

#[derive(Debug)]
struct SelfAttention {
    q_proj: Projection, // (H K, D)
    k_proj: Projection, // (G K, D)
    v_proj: Projection, // (G K, D)
    o_proj: Projection, // (D, H K)
    num_heads: usize,
    num_key_value_heads: usize,
}

impl Llama {
    /// Reads the blocks but for the last `skipped` from the root of their checkpoint, with or without a prefix `model`.
    ///
    /// # Errors
    /// Fails for a missing tensor, one of another shape than in the config, an unexpected one, and for as many skipped
    /// blocks as there are.
    pub fn new(config: &Config, skipped: usize, weights: Weights) -> anyhow::Result<Self> {
        let (this, unused) = Self::read(config, skipped, &weights)?;
        weights.finish(&unused.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(this)
    }

    /// Same as [`new`](Self::new), within a checkpoint that has other parts as well: returns the tensors that it leaves
    /// unread, by the starts of their names.
    pub fn read(config: &Config, skipped: usize, weights: &Weights) -> anyhow::Result<(Self, Vec<String>)> {
        let published = weights.pp("model");
        let root = match published.contains("embed_tokens.weight") {
            true => published,
            false => weights.clone(),
        };
        let count = config.num_hidden_layers;
        anyhow::ensure!(
            skipped < count,
            "num_hidden_layers: the hidden state before the last {skipped} of {count} blocks is asked for"
        );
        let layers = root.pp("layers");
        let this = Self {
            embed_tokens: root
                .pp("embed_tokens")
                .get((config.vocab_size, config.hidden_size), "weight")?,
            layers: (0..count - skipped)
                .map(|i| layers.block(i, |weights| Layer::new(config, &weights)))
                .collect::<Result<_>>()?,
            lent: weights.lent(),
            config: config.clone(),
        };
        let below = |name: &str| match root.prefix() {
            "" => name.to_string(),
            prefix => format!("{prefix}.{name}"),
        };
        let mut unused = config.unread(skipped, &below(""));
        unused.push(weights.pp("lm_head").prefix().to_string() + ".");
        Ok((this, unused))
    }

    /// Returns the embeddings of token ids: (1, L, D) f32.
    ///
    /// # Errors
    /// Fails for ids beyond the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let rows = self.embed_tokens.dim(0)?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= rows) {
            candle_core::bail!("the token id {id} is beyond the text encoder's {rows} embeddings");
        }
        let ids = Tensor::from_slice(ids, ids.len(), self.embed_tokens.device())?;
        self.embed_tokens
            .index_select(&ids, 0)?
            .to_dtype(DType::F32)?
            .unsqueeze(0)
    }

    /// Returns the hidden states of one text, given the embeddings of its tokens without padding (1, L, D): (1, L, D), of
    /// the weights' type.
    ///
    /// # Errors
    /// Fails for embeddings of another width.
    pub fn forward(&self, embeddings: &Tensor) -> Result<Tensor> {
        let (_, tokens, _) = embeddings.dims3()?;
        let device = self.embed_tokens.device();
        let mut x = embeddings.to_dtype(DType::F32)?; // (1, L, D)
        if tokens > 0 {
            let rotary = self.rotary(tokens, device)?;
            let mask = causal_mask(tokens, device)?;
            for (i, layer) in self.layers.iter().enumerate() {
                let _here = self.lent.as_ref().map(|lent| lent.fetch(i)).transpose()?;
                x = layer.forward(&x, &rotary, &mask)?; // (1, L, D)
            }
        }
        x.to_dtype(self.embed_tokens.dtype())
    }

    fn rotary(&self, tokens: usize, device: &Device) -> Result<Rotary> {
        let axis = Axis::counted(tokens, self.config.head_width());
        Rotary::grid(&[axis], self.config.theta(), PairLayout::Halves, device)
    }
}

impl Layer {
    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let norm = |name| Norm::rms(width, config.rms_norm_eps, weights.pp(name).to_dtype(DType::F32));
        let mlp = weights.pp("mlp");
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: SelfAttention::new(config, &weights.pp("self_attn"))?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            gate_proj: Projection::new(width, inner, mlp.pp("gate_proj"))?,
            up_proj: Projection::new(width, inner, mlp.pp("up_proj"))?,
            down_proj: Projection::new(inner, width, mlp.pp("down_proj"))?,
        })
    }

    /// Forward pass (1, L, D) f32 -> (1, L, D) f32
    fn forward(&self, x: &Tensor, rotary: &Rotary, mask: &Tensor) -> Result<Tensor> {
        let y = self
            .self_attn
            .forward(&self.input_layernorm.forward(x)?, rotary, mask)?;
        let x = (x + y.to_dtype(DType::F32)?)?; // (1, L, D)
        let y = self.post_attention_layernorm.forward(&x)?;
        let y = (silu(&self.gate_proj.forward(&y)?)? * self.up_proj.forward(&y)?)?; // (1, L, F)
        x + self.down_proj.forward(&y)?.to_dtype(DType::F32)?
    }
}

impl SelfAttention {
    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let (width, head) = (config.hidden_size, config.head_width());
        let (queries, keys) = (config.num_attention_heads * head, config.key_value_heads() * head);
        Ok(Self {
            q_proj: Projection::new(width, queries, weights.pp("q_proj"))?,
            k_proj: Projection::new(width, keys, weights.pp("k_proj"))?,
            v_proj: Projection::new(width, keys, weights.pp("v_proj"))?,
            o_proj: Projection::new(queries, width, weights.pp("o_proj"))?,
            num_heads: config.num_attention_heads,
            num_key_value_heads: config.key_value_heads(),
        })
    }

    /// Forward pass (1, L, D) -> (1, L, D)
    fn forward(&self, x: &Tensor, rotary: &Rotary, mask: &Tensor) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let heads = |x: Tensor, count| x.reshape((batch, tokens, count, ()));
        let q = rotary.apply(&heads(self.q_proj.forward(x)?, self.num_heads)?)?; // (1, L, H, K)
        let k = rotary.apply(&heads(self.k_proj.forward(x)?, self.num_key_value_heads)?)?; // (1, L, G, K)
        let v = heads(self.v_proj.forward(x)?, self.num_key_value_heads)?; // (1, L, G, K)
        let y = attention(&q, &self.shared(&k)?, &self.shared(&v)?, Some(mask))?; // (1, L, H, K)
        self.o_proj.forward(&y.flatten_from(2)?)
    }

    /// Repeats each head for the queries that share it: (1, L, G, K) -> (1, L, H, K)
    fn shared(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, groups, width) = x.dims4()?;
        let each = self.num_heads / groups;
        x.unsqueeze(3)?
            .expand(&[batch, tokens, groups, each, width])?
            .reshape((batch, tokens, self.num_heads, width))
    }
}
