//! Which tensors the ops have kernels for.

use candle_core::{DType, Tensor};

/// Whether a tensor is where kernels run and in a type that they know. On the CPU, types are refused by the kernels.
pub fn has_kernels(x: &Tensor) -> bool {
    let known = || matches!(x.dtype(), DType::F32 | DType::BF16);
    x.device().is_cpu() || (cfg!(feature = "cuda") && x.device().is_cuda() && known())
}
