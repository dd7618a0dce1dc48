//! The T5 encoder: token ids to one vector each.  arXiv:1910.10683; equals transformers' T5EncoderModel, and
//! UMT5EncoderModel where the config says so.
//!
//! Blocks of self-attention and feed-forward, each behind an RMS norm and added to what came in:
//! x += attention(norm(x)); x += feed_forward(norm(x)). Positions enter as a bias on the attention scores alone.
//! The running sum x, the norms, the softmax and the feed-forward's last product are in f32 whatever the weights'
//! storage: in T5 these grow beyond what half precision holds. Nothing trains through here, so no gradients are kept.
//!
//! Shapes: B captions, L tokens, D = d_model, H = num_heads, K = d_kv, F = d_ff.

mod attention;
mod config;
mod elementwise;
mod feed_forward;
mod position;

use candle_core::{DType, Result, Tensor};

use crate::nn::Weights;

use attention::SelfAttention;
use elementwise::{Norm, add};
use feed_forward::FeedForward;
use position::RelativeAttentionBias;

pub use config::{Config, FeedForwardProj, ModelType};
pub use position::bucket;

/// Tensors of a whole T5 that its encoder has no use for, and the second name of the one embedding table.
const NOT_OURS: [&str; 4] = ["decoder.", "lm_head.", "shared.weight", "encoder.embed_tokens.weight"];

/// The encoder with its weights.
#[derive(Debug)]
pub struct T5Encoder {
    shared: Tensor, // (vocabulary, D)
    /// The first block's, for all of them, or one for each.
    relative_attention_bias: Vec<RelativeAttentionBias>,
    block: Vec<Block>,
    final_layer_norm: Norm,
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
    /// A tensor is missing, has another shape than the config says, or has no place in the encoder.
    pub fn new(config: &Config, weights: Weights) -> anyhow::Result<Self> {
        config.check()?;
        let encoder = weights.pp("encoder");
        let tied = encoder.pp("embed_tokens");
        let shared = weights.pp("shared");
        let table = if shared.contains("weight") { shared } else { tied };
        let blocks = encoder.pp("block");
        let block = (0..config.num_layers).map(|i| Block::new(config, &blocks.pp(i)));
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
        };
        weights.finish(&NOT_OURS)?;
        Ok(this)
    }

    /// The last hidden states in the weights' dtype. Where `mask` is 0 a token is not attended to; without a mask all
    /// are, padding too.
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
            x = block.forward(x, &biases)?; // (B, L, D)
        }
        self.final_layer_norm.forward(&x)?.to_dtype(self.shared.dtype())
    }

    /// The last hidden states of one caption's tokens, and zeros behind them: (1, `length`, D).
    ///
    /// Equals what pipelines keep that pad a caption, mask its padding and clear the embeddings there (WanPipeline): a
    /// masked token weighs exactly 0, so that it need not be computed.
    ///
    /// # Errors
    /// There are more tokens than `length`, or one is beyond the vocabulary.
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

    /// What is added to the scores of each caption: where the tokens stand, and which of them count.
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
        // The most negative number, not infinity: a caption without any token is then spread evenly, not NaN.
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

    /// `x`: (B, L, D) f32
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
