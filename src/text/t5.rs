//! T5 encoder: token ids to one vector each.  arXiv:1910.10683; equals transformers' T5EncoderModel, and
//! UMT5EncoderModel for such configs.
//!
//! Blocks of self-attention and feed-forward, each after an RMS norm and added to its input: x += attention(norm(x)); x
//! += feed_forward(norm(x)). Positions enter only as a bias on the attention scores. The residual x, the norms, the
//! softmax and the feed-forward's last product are in f32 whatever the weights' storage: in T5 these grow beyond the
//! range of half precision. The encoder is never trained, so it keeps no gradients.
//!
//! Shapes: B captions, L tokens, D = d_model, H = num_heads, K = d_kv, F = d_ff.

mod attention;
mod config;
mod elementwise;
mod feed_forward;
mod position;

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use crate::nn::Weights;
use crate::nn::lent::LentBlocks;

use attention::SelfAttention;
use elementwise::{Norm, add};
use feed_forward::FeedForward;
use position::RelativeAttentionBias;

pub use config::{Config, FeedForwardProj, ModelType};
pub use position::bucket;

/// Tensors of a whole T5 that its encoder does not use, and the second name of the shared embedding table.
const NOT_OURS: [&str; 4] = ["decoder.", "lm_head.", "shared.weight", "encoder.embed_tokens.weight"];

/// Linear layers of a block, by the ends of their paths; without `wo`, which transformers keeps in f32.
const LINEAR: [&str; 7] = [
    "SelfAttention.q",
    "SelfAttention.k",
    "SelfAttention.v",
    "SelfAttention.o",
    "DenseReluDense.wi",
    "DenseReluDense.wi_0",
    "DenseReluDense.wi_1",
];

/// Module that transformers never stores in few bits.
pub const DENSE: &str = "wo";

/// Returns true for a linear layer that transformers stores in few bits.
pub fn is_linear(layer: &str) -> bool {
    LINEAR.iter().any(|end| layer.ends_with(end))
}

/// The encoder with its weights.
#[derive(Debug)]
pub struct T5Encoder {
    shared: Tensor, // (vocabulary, D)
    /// Bias of the first block, shared by all, or one for each.
    relative_attention_bias: Vec<RelativeAttentionBias>,
    block: Vec<Block>,
    final_layer_norm: Norm,
    /// Lent matrices of the blocks, if any.
    lent: Option<Arc<LentBlocks>>,
}

/// One block of the stack.
#[derive(Debug)]
struct Block {
    attention_norm: Norm,          // layer.0.layer_norm
    self_attention: SelfAttention, // layer.0.SelfAttention
    feed_forward_norm: Norm,       // layer.1.layer_norm
    dense_relu_dense: FeedForward, // layer.1.DenseReluDense
}

impl T5Encoder {
    /// Reads the encoder's weights from the root of their checkpoint.
    ///
    /// # Errors
    /// Fails for a missing tensor, one of another shape than in the config, or an unexpected one.
    pub fn new(config: &Config, weights: Weights) -> anyhow::Result<Self> {
        config.check()?;
        let encoder = weights.pp("encoder");
        let tied = encoder.pp("embed_tokens");
        let shared = weights.pp("shared");
        let table = if shared.contains("weight") { shared } else { tied };
        let blocks = encoder.pp("block");
        let block = (0..config.num_layers).map(|i| blocks.block(i, |weights| Block::new(config, &weights)));
        let biases = match config.model_type {
            ModelType::T5 => 1,
            ModelType::Umt5 => config.num_layers,
        };
        let bias = |i| RelativeAttentionBias::new(config, blocks.pp(i).pp("layer.0.SelfAttention"));
        let this = Self {
            shared: table.get((config.vocab_size, config.d_model), "weight")?,
            relative_attention_bias: (0..biases).map(bias).collect::<Result<_>>()?,
            block: block.collect::<Result<_>>()?,
            final_layer_norm: norm(config, encoder.pp("final_layer_norm"))?,
            lent: weights.lent(),
        };
        weights.finish(&NOT_OURS)?;
        Ok(this)
    }

    /// Returns the last hidden states in the weights' dtype. Tokens with `mask` 0 are not attended to; without a mask
    /// all are, including padding.
    ///
    /// `ids`: (B, L) u32, `mask`: (B, L) of any dtype -> (B, L, D)
    pub fn forward(&self, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (batch, length) = ids.dims2()?;
        let width = self.shared.dim(1)?;
        if batch == 0 || length == 0 {
            return Tensor::zeros((batch, length, width), self.shared.dtype(), self.shared.device());
        }
        let mut x = self.embed(&ids.flatten_all()?)?.reshape((batch, length, width))?; // (B, L, D)
        let mut biases = Vec::new();
        for (i, block) in self.block.iter().enumerate() {
            if let Some(position) = self.relative_attention_bias.get(i) {
                biases.clear(); // before the next are made: they are large
                biases = self.biases(position, batch, length, mask)?; // B of (H, L, L)
            }
            let _here = self.lent.as_ref().map(|lent| lent.fetch(i)).transpose()?;
            x = block.forward(x, &biases)?; // (B, L, D)
        }
        self.final_layer_norm.forward(&x)?.to_dtype(self.shared.dtype())
    }

    /// Returns the last hidden states of one caption's tokens, followed by zeros: (1, `length`, D).
    ///
    /// Equals pipelines that pad a caption, mask its padding and clear the embeddings there (WanPipeline): a masked
    /// token has weight exactly 0, so it need not be computed.
    ///
    /// # Errors
    /// Fails for more tokens than `length`, and for ids beyond the vocabulary.
    pub fn forward_padded(&self, ids: &[u32], length: usize) -> Result<Tensor> {
        let Some(missing) = length.checked_sub(ids.len()) else {
            candle_core::bail!("{} tokens are more than {length}", ids.len());
        };
        let x = self.forward(&Tensor::from_slice(ids, (1, ids.len()), self.shared.device())?, None)?;
        x.pad_with_zeros(1, 0, missing)
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (largest, rows) = (
            ids.max(0)?.to_dtype(DType::U32)?.to_scalar::<u32>()?,
            self.shared.dim(0)?,
        );
        if largest as usize >= rows {
            candle_core::bail!("the token id {largest} is beyond the text encoder's {rows} embeddings");
        }
        self.shared.index_select(ids, 0)?.to_dtype(DType::F32)
    }

    /// Returns the bias on each caption's scores: of positions and of the mask.
    fn biases(
        &self,
        position: &RelativeAttentionBias,
        batch: usize,
        length: usize,
        mask: Option<&Tensor>,
    ) -> Result<Vec<Tensor>> {
        let position = position.forward(length, self.shared.device())?; // (H, L, L)
        let Some(mask) = mask else {
            return Ok(vec![position; batch]);
        };
        if mask.dims() != [batch, length] {
            candle_core::bail!("the mask is {:?} and the ids {:?}", mask.dims(), [batch, length]);
        }
        // f32::MIN instead of infinity: a caption without any token then gets uniform weights, not NaN.
        let away = ((mask.to_dtype(DType::F32)?.ne(0f32)?.to_dtype(DType::F32)? - 1.0)? * f64::from(f32::MAX))?;
        let masked = |i| position.broadcast_add(&away.narrow(0, i, 1)?.unsqueeze(0)?); // (1, 1, L)
        (0..batch).map(masked).collect()
    }
}

impl Block {
    fn new(config: &Config, weights: &Weights) -> Result<Self> {
        let (attention, feed_forward) = (weights.pp("layer.0"), weights.pp("layer.1"));
        Ok(Self {
            attention_norm: norm(config, attention.pp("layer_norm"))?,
            self_attention: SelfAttention::new(config, attention.pp("SelfAttention"))?,
            feed_forward_norm: norm(config, feed_forward.pp("layer_norm"))?,
            dense_relu_dense: FeedForward::new(config, feed_forward.pp("DenseReluDense"))?,
        })
    }

    /// Forward pass of `x`: (B, L, D) f32
    fn forward(&self, x: Tensor, biases: &[Tensor]) -> Result<Tensor> {
        let y = self.self_attention.forward(&self.attention_norm.forward(&x)?, biases)?;
        let x = add(x, &y.to_dtype(DType::F32)?)?; // (B, L, D)
        let y = self.dense_relu_dense.forward(&self.feed_forward_norm.forward(&x)?)?;
        add(x, &y.to_dtype(DType::F32)?) // (B, L, D)
    }
}

fn norm(config: &Config, weights: Weights) -> Result<Norm> {
    Norm::new(config.d_model, config.layer_norm_epsilon, weights)
}
