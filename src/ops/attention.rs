//! Scaled dot-product attention: `softmax(scale q k^T + mask) v` for each head, scale = 1 / sqrt(K).
//!
//! Queries and keys are processed in tiles; the softmax is kept as a running maximum and sum (arXiv:1805.02867,
//! 2205.14135), so nothing has the size of queries times keys. The log-sum-exp of each query is saved for the backward
//! pass:
//!
//! ```text
//! p = exp(scale q k^T + mask - lse)       dv = p^T do
//! ds = p (do v^T - sum(do o))             dq = scale ds k      dk = scale ds^T q
//! ```
//!
//! The kernels count in powers of two: scores come as `log2(e) (scale q k^T + mask)`.
//!
//! On a GPU cuDNN computes this (feature `cudnn`); our own kernels cover f32 and cards before Ampere.
//!
//! Equals torch's `scaled_dot_product_attention`; a query whose keys are all masked gives 0.
//!
//! Shapes: B samples, S queries, L keys, H heads, K features a head. Tokens come before heads, the layout of linear
//! layers' outputs.
//!
//! If all scores are equal, each query gets the mean of the values:
//!
//! ```
//! use candle_core::{DType, Device, Tensor};
//! use vtrain::ops::attention::attention;
//!
//! let q = Tensor::ones((1, 3, 2, 4), DType::F32, &Device::Cpu)?; // (B, S, H, K)
//! let k = Tensor::zeros((1, 5, 2, 4), DType::F32, &Device::Cpu)?; // (B, L, H, K)
//! let v = Tensor::rand(0f32, 1f32, (1, 5, 2, 4), &Device::Cpu)?;
//!
//! let out = attention(&q, &k, &v, None)?; // (B, S, H, K)
//! assert_eq!(out.dims(), [1, 3, 2, 4]);
//! let error = out.broadcast_sub(&v.mean_keepdim(1)?)?.abs()?.max_all()?;
//! assert!(error.to_scalar::<f32>()? < 1e-6);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod backward;
pub mod bias;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cudnn")]
mod cudnn;
mod forward;
mod heads;
pub mod launch;
mod narrow;
pub mod softmax;
pub mod way;

use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, bail};

use super::bf16::Isa;
use super::device::has_kernels;
use super::f32_view::{self, bf16_view, f32_view, narrow_numbers_of, numbers_of, stored};
use super::microkernel::{COLUMNS, PANEL};
use super::tape::{Reads, Saveable, SavedState, apply3_costly};
use backward::{NeededGradients, SavedForward, backward};
use forward::forward;
use way::Backend;

/// Attention of q (B, S, H, K) to k and v (B, L, H, K), with `mask` (B or 1, H or 1, S or 1, L) added to the scores ->
/// (B, S, H, K).
///
/// For f32 and bf16, with sums in f32; where the CPU multiplies bf16 ([`super::bf16`]), weights are rounded to it. The mask gets no gradient. Without any keys the output is 0.
///
/// # Errors
/// Fails on mismatched shapes or types.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    attention_by(Isa::detect(), q, k, v, mask)
}

/// Same as [`attention`], with the instructions that multiply bf16 on the CPU; None for f32's.
///
/// # Errors
/// Same as [`attention`].
pub fn attention_by(isa: Option<Isa>, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let sizes = Sizes::new(q, k, v)?;
    if let Some(mask) = mask {
        sizes.check_mask(mask)?;
    }
    if q.elem_count() == 0 || sizes.keys == 0 {
        return q.zeros_like();
    }
    if !has_kernels(q) || !sizes.suit(q.device()) {
        way::note(Backend::Composed, q.dtype(), sizes.width);
        return reference(q, k, v, mask);
    }
    let op = Attention {
        sizes,
        mask: mask.map(Mask::new).transpose()?,
        isa,
        log_sums: OnceLock::new(),
    };
    let reads = Reads {
        inputs: [true; 3],
        output: true,
    };
    apply3_costly([&q.contiguous()?, &k.contiguous()?, &v.contiguous()?], op, reads)
}

/// Reference in candle's own operations: for other devices, and for f64.
///
/// # Errors
/// Same as [`attention`].
pub fn reference(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let sizes = Sizes::new(q, k, v)?;
    let wide = if q.dtype() == DType::F64 {
        DType::F64
    } else {
        DType::F32
    };
    let heads_first = |x: &Tensor| x.transpose(1, 2)?.contiguous();
    let scale = f64::from(sizes.scale());
    let (q, k, v) = (heads_first(&(q * scale)?)?, heads_first(k)?, heads_first(v)?); // (B, H, tokens, K)
    let mut scores = q.matmul(&k.t()?)?.to_dtype(wide)?; // (B, H, S, L)
    if let Some(mask) = mask {
        sizes.check_mask(mask)?;
        scores = scores.broadcast_add(&mask.to_dtype(wide)?)?;
    }
    // Lower bounds for a fully masked query: minus infinity less itself, and 0 / 0, would be NaN.
    let maxima = scores.max_keepdim(D::Minus1)?.detach().maximum(f64::from(f32::MIN))?;
    let exp = scores.broadcast_sub(&maxima)?.exp()?;
    let weights = exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?.maximum(1e-30)?)?;
    weights.to_dtype(v.dtype())?.matmul(&v)?.transpose(1, 2)?.contiguous()
}

/// Dimensions of an attention.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Batch size.
    pub batch: usize,
    /// Queries per sample.
    pub queries: usize,
    /// Keys per sample.
    pub keys: usize,
    /// Heads.
    pub heads: usize,
    /// Features per head.
    pub width: usize,
}

impl Sizes {
    fn new(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Self> {
        let (batch, queries, heads, width) = q.dims4()?;
        let (_, keys, _, _) = k.dims4()?;
        for (name, tensor) in [("keys", k), ("values", v)] {
            if tensor.dims() != [batch, keys, heads, width] {
                bail!("attention: {name} are {:?} but queries {:?}", tensor.dims(), q.dims());
            }
            if tensor.dtype() != q.dtype() {
                bail!(
                    "attention: {name} are {:?} but queries are {:?}",
                    tensor.dtype(),
                    q.dtype()
                );
            }
        }
        Ok(Self {
            batch,
            queries,
            keys,
            heads,
            width,
        })
    }

    fn check_mask(&self, mask: &Tensor) -> Result<()> {
        let (dims, scores) = (mask.dims4()?, [self.batch, self.heads, self.queries, self.keys]);
        let fits = |(found, wanted): (usize, usize)| found == 1 || found == wanted;
        let pairs = [dims.0, dims.1, dims.2].into_iter().zip(scores);
        if !pairs.into_iter().all(fits) || dims.3 != self.keys {
            bail!("attention: a mask {:?} for scores {scores:?}", mask.dims());
        }
        Ok(())
    }

    /// Checks that a device's kernels support heads of this width.
    fn suit(&self, device: &Device) -> bool {
        const WIDEST: usize = 256; // tiled.cu
        device.is_cpu() || self.width <= WIDEST
    }

    fn scale(&self) -> f32 {
        (self.width as f32).powf(-0.5)
    }

    /// Scale of scores that are exponents of 2.
    fn exp2_scale(&self) -> f32 {
        self.scale() * std::f32::consts::LOG2_E
    }

    /// Distance from one token to the next.
    fn row(&self) -> usize {
        self.heads * self.width
    }

    /// Features of a head, padded to whole vectors.
    fn padded(&self) -> usize {
        self.width.next_multiple_of(COLUMNS)
    }

    /// Distance between a head's rows where they are laid out for products. Where a product reads a part of each row, no
    /// power of two: those parts would share few places in the cache.
    fn step(&self) -> usize {
        let padded = self.padded();
        let crowded = padded > PANEL && padded.is_multiple_of(PANEL);
        if crowded { padded + COLUMNS } else { padded }
    }
}

/// Mask added to the scores, with stride 0 along broadcast axes.
#[derive(Debug)]
struct Mask {
    /// On the CPU: values times log2(e).
    numbers: Vec<f32>,
    /// On a GPU: the mask as passed in, in f32.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    table: Option<Tensor>,
    /// Strides of samples, heads and queries; keys are contiguous.
    strides: [usize; 3],
}

impl Mask {
    /// Reads a mask that has the right shape.
    fn new(mask: &Tensor) -> Result<Self> {
        let strides = mask_strides(mask.dims4()?);
        let table = mask.to_dtype(DType::F32)?.contiguous()?;
        if !mask.device().is_cpu() {
            return Ok(Self {
                numbers: Vec::new(),
                table: Some(table),
                strides,
            });
        }
        let mut numbers = table.flatten_all()?.to_vec1::<f32>()?;
        for number in &mut numbers {
            // f32::MIN, which many use for minus infinity, must not overflow to it: a fully masked query would have no
            // keys.
            let scaled = *number * std::f32::consts::LOG2_E;
            *number = if number.is_finite() {
                scaled.clamp(f32::MIN, f32::MAX)
            } else {
                scaled
            };
        }
        Ok(Self {
            numbers,
            table: None,
            strides,
        })
    }

    /// Returns the mask of one query, from key `first` on; heads are counted through all samples.
    fn row(&self, sizes: &Sizes, head: usize, query: usize, first: usize) -> &[f32] {
        let [samples, heads, queries] = self.strides;
        let start = head / sizes.heads * samples + head % sizes.heads * heads + query * queries;
        &self.numbers[start + first..start + sizes.keys]
    }
}

/// Returns the strides of samples, heads and queries in a mask of these sizes; 0 along broadcast axes.
pub fn mask_strides((samples, heads, queries, keys): (usize, usize, usize, usize)) -> [usize; 3] {
    let stride = |count: usize, stride: usize| if count > 1 { stride } else { 0 };
    [
        stride(samples, heads * queries * keys),
        stride(heads, queries * keys),
        stride(queries, keys),
    ]
}

struct Attention {
    sizes: Sizes,
    mask: Option<Mask>,
    /// Instructions for bf16; without, that is computed in f32, too.
    isa: Option<Isa>,
    /// (B, H, S): saved by the forward pass for the backward pass.
    log_sums: OnceLock<SavedState>,
}

impl Attention {
    /// Returns what multiplies numbers of this type on the CPU, unless products are in f32.
    fn narrow_isa(&self, dtype: DType) -> Option<Isa> {
        self.isa.filter(|_| dtype == DType::BF16)
    }
}

impl Saveable for Attention {
    fn left(&self) -> SavedState {
        self.log_sums
            .get()
            .cloned()
            .unwrap_or_else(|| SavedState::Host(Arc::default()))
    }

    fn resume(&self, left: SavedState) {
        self.log_sums.get_or_init(|| left);
    }
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
        way::note(Backend::Cpu, q.dtype(), self.sizes.width);
        let (out, log_sums) = match self.narrow_isa(q.dtype()) {
            Some(isa) => {
                let (q, k, v) = (
                    bf16_view(q, q_layout)?,
                    bf16_view(k, k_layout)?,
                    bf16_view(v, v_layout)?,
                );
                let (out, log_sums) = narrow::forward::forward(isa, &self.sizes, self.mask.as_ref(), [&q, &k, &v]);
                (CpuStorage::BF16(out), log_sums)
            }
            None => {
                let (wide_q, k, v) = (f32_view(q, q_layout)?, f32_view(k, k_layout)?, f32_view(v, v_layout)?);
                let (out, log_sums) = forward(&self.sizes, self.mask.as_ref(), &wide_q, &k, &v);
                (stored(out, q.dtype())?, log_sums)
            }
        };
        self.log_sums.get_or_init(|| SavedState::Host(Arc::new(log_sums)));
        Ok((out, q_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &candle_core::CudaStorage,
        q_layout: &Layout,
        k: &candle_core::CudaStorage,
        k_layout: &Layout,
        v: &candle_core::CudaStorage,
        v_layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (out, log_sums) = self.forward_on((q, q_layout), (k, k_layout), (v, v_layout))?;
        self.log_sums.get_or_init(|| SavedState::Device(log_sums));
        Ok((out, q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        #[cfg(feature = "cuda")]
        if let Some(SavedState::Device(log_sums)) = self.log_sums.get() {
            return self.back_on([q, k, v], out, log_sums, &grad.contiguous()?);
        }
        let Some(SavedState::Host(log_sums)) = self.log_sums.get() else {
            bail!("attention: backward pass without its forward pass");
        };
        let wanted = NeededGradients {
            q: q.track_op(),
            k: k.track_op(),
            v: v.track_op(),
        };
        let tensors = [q, k, v, out, &grad.contiguous()?];
        let (sizes, mask) = (&self.sizes, self.mask.as_ref());
        if let Some(isa) = self.narrow_isa(q.dtype()) {
            let gradients = narrow_numbers_of(tensors, |numbers| {
                let given = SavedForward::new(numbers, log_sums);
                narrow::backward::backward(isa, sizes, mask, given, wanted)
            })?;
            return gradients.tensors([q, k, v], |numbers, like| {
                Tensor::from_vec(numbers, like.dims(), like.device())
            });
        }
        let gradients = numbers_of(tensors, |numbers| {
            backward(sizes, mask, SavedForward::new(numbers, log_sums), wanted)
        })?;
        gradients.tensors([q, k, v], f32_view::like)
    }
}
