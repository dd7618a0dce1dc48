//! Scaled dot-product attention: `softmax(scale q k^T + mask) v` for each head, scale = 1 / sqrt(K).
//!
//! Queries and keys are walked through in tiles; the softmax is kept as a running maximum and sum (arXiv:1805.02867,
//! 2205.14135), so nothing has the size of queries times keys. For the way back each query's log-sum-exp is kept:
//!
//! ```text
//! p = exp(scale q k^T + mask - lse)       dv = p^T do
//! ds = p (do v^T - sum(do o))             dq = scale ds k      dk = scale ds^T q
//! ```
//!
//! Equals torch's `scaled_dot_product_attention`.
//!
//! Shapes: B samples, S queries, L keys, H heads, K features a head. Tokens come before heads, as linear layers give them.

mod backward;
mod forward;

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp3, D, DType, Error, Layout, Result, Shape, Tensor};

use super::slices::{numbers_of, stored, widened};
use backward::{Left, backward};
use forward::forward;

/// q (B, S, H, K), k and v (B, L, H, K), `mask` (B or 1, H or 1, S or 1, L) to be added to the scores -> (B, S, H, K).
///
/// No gradient reaches the mask.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (batch, queries, heads, width) = q.dims4()?;
    let keys = k.dim(1)?;
    for (name, tensor) in [("keys", k), ("values", v)] {
        if tensor.dims() != [batch, keys, heads, width] {
            candle_core::bail!(
                "attention: {name} are {:?} beside queries {:?}",
                tensor.dims(),
                q.dims()
            );
        }
    }
    if q.elem_count() == 0 || keys == 0 {
        return q.zeros_like();
    }
    if !q.device().is_cpu() {
        return composed(q, k, v, mask);
    }
    let sizes = Sizes {
        batch,
        queries,
        keys,
        heads,
        width,
    };
    let op = Attention {
        sizes,
        mask: mask.map(|mask| Mask::new(mask, &sizes)).transpose()?,
        log_sums: Arc::default(),
    };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

/// The same in candle's operations, for other devices.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let scale = (q.dim(D::Minus1)? as f64).powf(-0.5);
    let heads_first = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let (q, k, v) = (heads_first(&(q * scale)?)?, heads_first(k)?, heads_first(v)?); // (B, H, tokens, K)
    let mut scores = q.matmul(&k.t()?)?.to_dtype(DType::F32)?; // (B, H, S, L)
    if let Some(mask) = mask {
        scores = scores.broadcast_add(&mask.to_dtype(DType::F32)?)?;
    }
    let exp = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let weights = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?;
    weights.to_dtype(v.dtype())?.matmul(&v)?.transpose(1, 2)?.contiguous()
}

/// How much of everything there is.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    width: usize,
}

impl Sizes {
    fn scale(&self) -> f32 {
        (self.width as f32).powf(-0.5)
    }

    /// From one token to the next.
    fn row(&self) -> usize {
        self.heads * self.width
    }
}

/// What is added to the scores, with a stride of 0 where it is the same for all.
#[derive(Debug, Clone)]
struct Mask {
    numbers: Arc<Vec<f32>>,
    /// Of samples, heads and queries; keys follow each other.
    strides: [usize; 3],
}

impl Mask {
    fn new(mask: &Tensor, sizes: &Sizes) -> Result<Self> {
        let dims = mask.dims4()?;
        let wanted = [sizes.batch, sizes.heads, sizes.queries];
        let found = [dims.0, dims.1, dims.2];
        let fits = found
            .iter()
            .zip(wanted)
            .all(|(found, wanted)| *found == 1 || *found == wanted);
        if !fits || dims.3 != sizes.keys {
            candle_core::bail!("attention: a mask {dims:?} for scores {wanted:?} x {}", sizes.keys);
        }
        let whole = [dims.1 * dims.2 * dims.3, dims.2 * dims.3, dims.3];
        let mut strides = [0; 3];
        for axis in 0..3 {
            if found[axis] > 1 {
                strides[axis] = whole[axis];
            }
        }
        Ok(Self {
            numbers: Arc::new(mask.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?),
            strides,
        })
    }

    /// The mask of one query, from key `first` on.
    fn row(&self, sample: usize, head: usize, query: usize, first: usize) -> &[f32] {
        let [samples, heads, queries] = self.strides;
        &self.numbers[sample * samples + head * heads + query * queries + first..]
    }
}

struct Attention {
    sizes: Sizes,
    mask: Option<Mask>,
    /// Each query's log-sum-exp (B, S, H): left by the way forward for the way back.
    log_sums: Arc<Mutex<Vec<f32>>>,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dtype = candle_core::backend::BackendStorage::dtype(q);
        let (q, k, v) = (widened(q, q_layout)?, widened(k, k_layout)?, widened(v, v_layout)?);
        let (out, log_sums) = forward(&self.sizes, self.mask.as_ref(), &q, &k, &v);
        *self.log_sums.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = log_sums;
        let Sizes {
            batch,
            queries,
            heads,
            width,
            ..
        } = self.sizes;
        Ok((stored(out, dtype)?, (batch, queries, heads, width).into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let log_sums = self.log_sums.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if log_sums.is_empty() {
            return Err(Error::Msg("attention: the way back without the way forward".into()));
        }
        let tensors = [q, k, v, out, &grad.contiguous()?];
        let gradients = numbers_of(tensors, |[q, k, v, out, grad]| {
            let left = Left {
                q,
                k,
                v,
                out,
                grad,
                log_sums: &log_sums,
            };
            backward(&self.sizes, self.mask.as_ref(), left)
        })?;
        let tensor =
            |numbers, like: &Tensor| Tensor::from_vec(numbers, like.dims(), like.device())?.to_dtype(like.dtype());
        Ok((
            Some(tensor(gradients.q, q)?),
            Some(tensor(gradients.k, k)?),
            Some(tensor(gradients.v, v)?),
        ))
    }
}
