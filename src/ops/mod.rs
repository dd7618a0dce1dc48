//! The operations that dominate training time, each with a hand-written backward pass.
//!
//! candle differentiates chains of small operations. Each would pass over memory several times, compute gradients of
//! frozen weights, and hold the whole matrix of attention scores. An op here is a plain function of tensors, one node
//! in the gradient graph, and kernels for the CPU and for CUDA (feature `cuda`) with sums in f32, for f32 and bf16. On
//! other devices, and for other types on a GPU, the same functions compose candle's own operations.
//!
//! On the CPU, results do not depend on the number of threads: work is cut into pieces of fixed sizes, and sums run in
//! fixed orders.

pub mod activation;
pub mod add;
mod aligned;
pub mod attention;
pub mod bf16;
pub mod bytes;
pub mod clock;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod determinism;
mod device;
pub mod dropout;
mod f32_view;
mod gemm;
pub mod instructions;
pub mod join;
pub mod kernel;
pub mod linear;
mod map;
pub mod microkernel;
pub mod modulate;
pub mod norm;
mod parts;
pub mod profile;
pub mod residual;
pub mod rotary;
pub mod simd;
mod simd_math;
pub mod stored;
mod sums;
pub mod swiglu;
pub mod tape;
pub mod vjp;

pub use attention::attention;
