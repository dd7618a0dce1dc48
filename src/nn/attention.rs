//! Scaled dot-product attention: softmax(Q K^T / sqrt(K)) V, with the softmax in f32.  arXiv:1706.03762
//!
//! The score matrix of a whole video is far larger than all else. Where no gradient is asked for it is computed in parts:
//! a few heads at a time, and of a head that is too large by itself a few queries at a time.
//!
//! Shapes: B samples, H heads, S queries, L keys, K features a head; N = B H.

use candle_core::{D, DType, Result, Tensor};

/// The most that one part of the scores may take.
const MAX_SCORE_BYTES: usize = 256 << 20;

/// q (B, H, S, K), k and v (B, H, L, K) -> (B, H, S, K)
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    attention_within(q, k, v, MAX_SCORE_BYTES)
}

/// The same with another bound on the scores, in bytes.
pub fn attention_within(q: &Tensor, k: &Tensor, v: &Tensor, max_score_bytes: usize) -> Result<Tensor> {
    let (batch, heads, queries, width) = q.dims4()?;
    let keys = k.dim(2)?;
    let q = (q * (width as f64).powf(-0.5))?.reshape((batch * heads, queries, width))?; // (N, S, K)
    let k = k.reshape((batch * heads, keys, width))?.transpose(1, 2)?.contiguous()?; // (N, K, L)
    let v = v.reshape((batch * heads, keys, width))?; // (N, L, K)

    let learns = q.track_op() || k.track_op() || v.track_op();
    let query_bytes = keys * DType::F32.size_in_bytes();
    let rows = (max_score_bytes / query_bytes.max(1)).max(1); // queries that fit
    let out = if learns || rows >= batch * heads * queries {
        whole(&q, &k, &v)?
    } else if rows >= queries {
        by_heads(&q, &k, &v, rows / queries)?
    } else {
        by_queries(&q, &k, &v, rows)?
    };
    out.reshape((batch, heads, queries, width))
}

fn whole(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let scores = q.matmul(k)?.to_dtype(DType::F32)?; // (N, S, L)
    softmax(&scores)?.to_dtype(v.dtype())?.matmul(v)
}

fn by_heads(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let parts = chunks(q.dim(0)?, heads)
        .map(|(at, len)| whole(&q.narrow(0, at, len)?, &k.narrow(0, at, len)?, &v.narrow(0, at, len)?));
    Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
}

fn by_queries(q: &Tensor, k: &Tensor, v: &Tensor, queries: usize) -> Result<Tensor> {
    let one_head = |head: usize| {
        let (q, k, v) = (q.narrow(0, head, 1)?, k.narrow(0, head, 1)?, v.narrow(0, head, 1)?);
        let parts = chunks(q.dim(1)?, queries).map(|(at, len)| whole(&q.narrow(1, at, len)?.contiguous()?, &k, &v));
        Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 1)
    };
    Tensor::cat(&(0..q.dim(0)?).map(one_head).collect::<Result<Vec<_>>>()?, 0)
}

/// Starts and lengths of the parts of `total`, each at most `len` long.
fn chunks(total: usize, len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..total).step_by(len).map(move |at| (at, len.min(total - at)))
}

/// exp(x - max) / sum exp(x - max) over the last axis, in ops that a gradient can pass.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let max = x.max_keepdim(D::Minus1)?.detach(); // the result does not depend on it, so neither does the gradient
    let exp = x.broadcast_sub(&max)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}
