//! Self-attention over a caption: softmax(q k^T + bias) v, without scaling by the head width.

use candle_core::{DType, Result, Tensor};

use crate::nn::Weights;
use crate::text::projection::Projection;

use super::config::Config;
use super::elementwise::softmax_of_sum;

/// Equals transformers' T5Attention in an encoder.
#[derive(Debug)]
pub struct SelfAttention {
    q: Projection, // (H * K, D)
    k: Projection, // (H * K, D)
    v: Projection, // (H * K, D)
    o: Projection, // (D, H * K)
    num_heads: usize,
}

impl SelfAttention {
    /// Reads `q`, `k`, `v` and `o`.
    pub fn new(config: &Config, weights: Weights) -> Result<Self> {
        let (width, inner) = (config.d_model, config.num_heads * config.d_kv);
        Ok(Self {
            q: Projection::new(width, inner, weights.pp("q"))?,
            k: Projection::new(width, inner, weights.pp("k"))?,
            v: Projection::new(width, inner, weights.pp("v"))?,
            o: Projection::new(inner, width, weights.pp("o"))?,
            num_heads: config.num_heads,
        })
    }

    /// Forward pass of `x`: (B, L, D), with `biases`: B of (H, L, L) -> (B, L, D)
    pub fn forward(&self, x: &Tensor, biases: &[Tensor]) -> Result<Tensor> {
        let (q, k, v) = (self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?); // (B, L, H * K)
        let attended: Vec<Tensor> = (biases.iter().enumerate())
            .map(|(i, bias)| self.attend(&q.get(i)?, &k.get(i)?, &v.get(i)?, bias))
            .collect::<Result<_>>()?;
        let attended = match attended.as_slice() {
            [one] => one.unsqueeze(0)?,
            many => Tensor::stack(many, 0)?,
        };
        self.o.forward(&attended)
    }

    /// Attention of one caption: `q`, `k`, `v` (L, H * K), `bias` (H, L, L) -> (L, H * K)
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor) -> Result<Tensor> {
        let (length, inner) = q.dims2()?;
        let heads = |x: &Tensor| {
            let x = x.reshape((length, self.num_heads, ()))?.transpose(0, 1)?; // (H, L, K)
            // The CPU's product takes any strides, cuBLAS needs contiguous rows.
            if x.device().is_cpu() { Ok(x) } else { x.contiguous() }
        };
        let (q, k, v) = (heads(q)?, heads(k)?, heads(v)?);
        let scores = q.matmul(&k.t()?)?.to_dtype(DType::F32)?; // (H, L, L)
        let weights = softmax_of_sum(scores, bias)?.to_dtype(v.dtype())?; // (H, L, L)
        weights.matmul(&v)?.transpose(0, 1)?.reshape((length, inner))
    }
}
