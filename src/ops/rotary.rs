//! Rotary position embedding: pairs of features are rotated by an angle that depends on the token. arXiv:2104.09864
//!
//! ```text
//! (y0, y1) = (x0 cos - x1 sin, x1 cos + x0 sin)      backward: the same by the opposite angle
//! ```
//!
//! Shapes: B samples, S tokens, H heads, K features a head. Tokens come before heads, the layout of linear layers'
//! outputs.

#[cfg(feature = "cuda")]
mod cuda;
pub mod launch;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor};

use super::device::has_kernels;
use super::f32_view::numbers_of;
use super::map::{Numbers, map, pieces};
use super::simd_math::wide;
use super::tape::{Reads, apply1};

/// Features that form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairLayout {
    /// 2i and 2i + 1.
    Neighbours,
    /// i and i + K/2.
    Halves,
    /// The same within each of so many equal parts of a head, such as the features of an axis each.
    HalvesOf(usize),
}

impl PairLayout {
    /// Returns how far apart the two features of a pair are, in a head of this width; None for parts that are not pairs.
    pub fn distance(self, width: usize) -> Option<usize> {
        match self {
            Self::Neighbours => Some(1),
            Self::Halves => Some(width / 2),
            Self::HalvesOf(parts) => (parts > 0 && width.is_multiple_of(2 * parts)).then(|| width / (2 * parts)),
        }
    }
}

/// Rotation angles of tokens.
#[derive(Debug, Clone)]
pub struct Rotation {
    /// Cosines (S - first, K / 2), f32; (B, ...) if samples differ; (..., H K / 2) if heads differ, with neighbouring
    /// pairs.
    pub cos: Tensor,
    /// Sines, shaped as `cos`.
    pub sin: Tensor,
    /// Features that make a pair.
    pub pairs: PairLayout,
    /// Leading tokens that are not rotated; the tables start after them.
    pub first: usize,
}

impl Rotation {
    /// Rotates x (B, S, H, K) -> (B, S, H, K), computed in f32. Only x gets a gradient.
    ///
    /// # Errors
    /// Fails for tables of other sizes or of a type other than f32; on the CPU, for an x of a type other than f32 and
    /// bf16.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, heads, width) = x.dims4()?;
        for table in [&self.cos, &self.sin] {
            let (samples, rows, pairs) = match *table.dims() {
                [rows, pairs] => (batch, rows, pairs),
                [samples, rows, pairs] => (samples, rows, pairs),
                _ => (0, 0, 0),
            };
            let by_head = self.pairs == PairLayout::Neighbours && 2 * pairs == heads * width;
            let paired = self.pairs.distance(width).is_some();
            let fits = samples == batch && self.first + rows == tokens && (2 * pairs == width && paired || by_head);
            if !fits || self.cos.dims() != self.sin.dims() || table.dtype() != DType::F32 {
                candle_core::bail!(
                    "{:?} cannot be rotated by a table {:?} of {:?} after {} tokens",
                    x.dims(),
                    table.dims(),
                    table.dtype(),
                    self.first
                );
            }
        }
        if x.elem_count() == 0 {
            return Ok(x.clone());
        }
        if !has_kernels(x) {
            return self.reference(x);
        }
        let turn = Self {
            cos: self.cos.contiguous()?,
            sin: self.sin.contiguous()?,
            ..self.clone()
        };
        let reads = Reads {
            inputs: [false],
            output: false,
        };
        apply1(&x.contiguous()?, Op { turn, sign: 1.0 }, reads)
    }

    /// Reference in candle's own operations: for other devices.
    ///
    /// # Errors
    /// Same as [`Rotation::forward`].
    pub fn reference(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, ..) = x.dims4()?;
        let width = 2 * self.cos.dim(D::Minus1)?; // of all heads, where they turn differently
        let heads = x.elem_count() / (batch * tokens * width).max(1);
        let shape = x.dims();
        let x = x.contiguous()?.reshape((batch, tokens, heads, width))?;
        let turning = tokens - self.first;
        let still = x.narrow(1, 0, self.first)?;
        // The pairs of a run of features are its two halves, d features each.
        let apart = self.pairs.distance(width).unwrap_or(1).max(1);
        let dims = vec![batch, turning, heads, width / (2 * apart), 2, apart];
        let pairs = x.narrow(1, self.first, turning)?.to_dtype(DType::F32)?;
        let pairs = pairs.contiguous()?.reshape(dims)?;
        let of_pair = |at: usize| pairs.narrow(4, at, 1)?.squeeze(4)?.flatten_from(3); // (B, S - first, H, K / 2)
        let (x0, x1) = (of_pair(0)?, of_pair(1)?);
        let (cos, sin) = (self.cos.unsqueeze(D::Minus2)?, self.sin.unsqueeze(D::Minus2)?); // (.., S - first, 1, K / 2)
        let y0 = (x0.broadcast_mul(&cos)? - x1.broadcast_mul(&sin)?)?;
        let y1 = (x1.broadcast_mul(&cos)? + x0.broadcast_mul(&sin)?)?;
        let runs = |y: Tensor| y.reshape((batch, turning, heads, width / (2 * apart), apart));
        let turned = Tensor::stack(&[runs(y0)?, runs(y1)?], 4)?
            .reshape((batch, turning, heads, width))?
            .to_dtype(x.dtype())?;
        Tensor::cat(&[still, turned], 1)?.reshape(shape)
    }
}

struct Op {
    turn: Rotation,
    /// -1 in the backward pass.
    sign: f32,
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, tokens, heads, width) = layout.shape().dims4()?;
        let numbers = Numbers::new(x, layout)?;
        let Rotation { cos, sin, pairs, first } = &self.turn;
        let count = cos.dim(D::Minus1)?;
        let apart = pairs.distance(width).unwrap_or(1).max(1);
        let size = heads * width; // of a token
        let pieces = pieces(numbers.len() / size, size);
        let y = numbers_of([cos, sin], |[cos, sin]| {
            map(x.dtype(), [(size, numbers)], (size, &pieces), |piece, [x], y| {
                for (row, (y, x)) in pieces[piece].clone().zip(y.chunks_mut(size).zip(x.chunks(size))) {
                    let (sample, token) = (row / tokens, row % tokens);
                    if token < *first {
                        y.copy_from_slice(x);
                        continue;
                    }
                    // If samples share a table, this wraps around to its start.
                    let row = (sample * (tokens - first) + token - first) * count % cos.len();
                    let row = row..row + count;
                    match pairs {
                        PairLayout::Neighbours => neighbours(x, &cos[row.clone()], &sin[row], self.sign, y),
                        PairLayout::Halves | PairLayout::HalvesOf(_) => {
                            halves(apart, x, &cos[row.clone()], &sin[row], self.sign, y);
                        }
                    }
                }
            })
        })??;
        Ok((y, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        self.forward_on(x, layout)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Self {
            turn: self.turn.clone(),
            sign: -self.sign,
        };
        grad.contiguous()?.apply_op1_no_bwd(&back).map(Some)
    }
}

wide! {
    /// Rotates the heads of one token.
    fn neighbours(x: &[f32], cos: &[f32], sin: &[f32], sign: f32, y: &mut [f32]) {
        for (x, y) in x.chunks_exact(2 * cos.len()).zip(y.chunks_exact_mut(2 * cos.len())) {
            let pairs = x.as_chunks::<2>().0.iter().zip(y.as_chunks_mut::<2>().0);
            for (((x, y), cos), sin) in pairs.zip(cos).zip(sin) {
                let sin = sin * sign;
                *y = [x[0] * cos - x[1] * sin, x[1] * cos + x[0] * sin];
            }
        }
    }
}

wide! {
    /// Rotates the heads of one token, whose pairs are so far apart.
    fn halves(apart: usize, x: &[f32], cos: &[f32], sin: &[f32], sign: f32, y: &mut [f32]) {
        let tables = cos.chunks_exact(apart).zip(sin.chunks_exact(apart)).cycle(); // anew for each head
        for ((x, y), (cos, sin)) in x.chunks_exact(2 * apart).zip(y.chunks_exact_mut(2 * apart)).zip(tables) {
            let ((x0, x1), (y0, y1)) = (x.split_at(apart), y.split_at_mut(apart));
            for (((((x0, x1), y0), y1), cos), sin) in x0.iter().zip(x1).zip(y0).zip(y1).zip(cos).zip(sin) {
                let sin = sin * sign;
                *y0 = x0 * cos - x1 * sin;
                *y1 = x1 * cos + x0 * sin;
            }
        }
    }
}
