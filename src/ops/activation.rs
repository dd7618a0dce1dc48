//! GELU and SiLU, each a single pass forward and a single pass backward.
//!
//! ```text
//! GELU (erf)   y = x P(x), P the normal distribution's function                 arXiv:1606.08415
//! GELU (tanh)  y = x/2 (1 + tanh(u)), u = sqrt(2/pi) (x + 0.044715 x^3)
//! SiLU         y = x / (1 + e^-x)
//! ```
//!
//! Equal torch's `gelu`, `gelu(approximate="tanh")` and `silu`.

#[cfg(feature = "cuda")]
mod cuda;
mod launch;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::device::has_kernels;
use super::map::{Numbers, map, map_like, pieces};
use super::simd_math::{exp, tanh, wide};
use super::tape::{Reads, apply1};

/// Returns exact GELU (error function), for any shape.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    if !has_kernels(x) {
        return x.gelu_erf();
    }
    Activation::GeluErf.apply(x)
}

/// Returns the tanh approximation of GELU, for any shape.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    if !has_kernels(x) {
        return x.gelu();
    }
    Activation::GeluTanh.apply(x)
}

/// Returns SiLU, for any shape.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if !has_kernels(x) {
        return x.silu();
    }
    Activation::Silu.apply(x)
}

/// Activation functions, in the order of the kinds in activation.cu.
#[derive(Debug, Clone, Copy)]
pub enum Activation {
    /// `x Phi(x)`, with the error function.
    GeluErf,
    /// Tanh approximation of GELU.
    GeluTanh,
    /// `x sigmoid(x)`.
    Silu,
}

impl Activation {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        let reads = Reads {
            inputs: [true],
            output: false,
        };
        apply1(&x.contiguous()?, self, reads)
    }
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        match self {
            Self::GeluErf => "gelu-erf",
            Self::GeluTanh => "gelu-tanh",
            Self::Silu => "silu",
        }
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let numbers = Numbers::new(x, layout)?;
        let pieces = pieces(numbers.len(), 1);
        let y = map(x.dtype(), [(1, numbers)], (1, &pieces), |_, [x], y| match self {
            Self::GeluErf => erf_forward(x, y),
            Self::GeluTanh => tanh_forward(x, y),
            Self::Silu => silu_forward(x, y),
        })?;
        Ok((y, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        self.forward_on(x, layout)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return self.back_on(x, grad).map(Some);
        }
        let (grad, pieces) = (grad.contiguous()?, pieces(x.elem_count(), 1));
        let dx = map_like(x, [(1, x), (1, &grad)], (1, &pieces), |_, [x, grad], dx| match self {
            Self::GeluErf => erf_back(x, grad, dx),
            Self::GeluTanh => tanh_back(x, grad, dx),
            Self::Silu => silu_back(x, grad, dx),
        })?;
        Ok(Some(dx))
    }
}

/// Returns the normal distribution function and density at x, to 1e-7: formula 7.1.26 of Abramowitz and Stegun,
/// Handbook of Mathematical Functions.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    const DENSITY: f32 = 0.398_942_3; // 1 / sqrt(2 pi)
    const P: f32 = 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / P.mul_add(x.abs(), 1.0);
    let mut tail = 1.061_405_4f32;
    for a in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6, 0.0] {
        tail = tail.mul_add(t, a);
    }
    let bell = exp(-0.5 * x * x);
    let tail = 0.5 * tail * bell;
    (if x < 0.0 { tail } else { 1.0 - tail }, DENSITY * bell)
}

wide! {
    fn erf_forward(x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            *y = x * normal(*x).0;
        }
    }
}

wide! {
    /// y' = P(x) + x P'(x)
    fn erf_back(x: &[f32], grad: &[f32], dx: &mut [f32]) {
        for ((x, grad), dx) in x.iter().zip(grad).zip(dx) {
            let (below, density) = normal(*x);
            *dx = grad * x.mul_add(density, below);
        }
    }
}

const SLOPE: f32 = 0.797_884_6; // sqrt(2 / pi)
const CUBE: f32 = 0.044_715;

wide! {
    fn tanh_forward(x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            let u = SLOPE * (CUBE * x * x).mul_add(*x, *x);
            *y = 0.5 * x * (1.0 + tanh(u));
        }
    }
}

wide! {
    /// y' = (1 + t) / 2 + x/2 (1 - t^2) u' with t = tanh u, u' = sqrt(2/pi) (1 + 3 0.044715 x^2)
    fn tanh_back(x: &[f32], grad: &[f32], dx: &mut [f32]) {
        for ((x, grad), dx) in x.iter().zip(grad).zip(dx) {
            let t = tanh(SLOPE * (CUBE * x * x).mul_add(*x, *x));
            let inner = SLOPE * (3.0 * CUBE * x).mul_add(*x, 1.0);
            *dx = grad * 0.5 * (x * (1.0 - t * t)).mul_add(inner, 1.0 + t);
        }
    }
}

wide! {
    fn silu_forward(x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            *y = x / (1.0 + exp(-x));
        }
    }
}

wide! {
    /// y' = s (1 + x (1 - s)) with s = 1 / (1 + e^-x)
    fn silu_back(x: &[f32], grad: &[f32], dx: &mut [f32]) {
        for ((x, grad), dx) in x.iter().zip(grad).zip(dx) {
            let s = 1.0 / (1.0 + exp(-x));
            *dx = grad * s * x.mul_add(1.0 - s, 1.0);
        }
    }
}
