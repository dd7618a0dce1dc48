//! Selects the tensors that ops have kernels for.

use candle_core::{DType, Tensor};

/// Checks that a tensor's device and type have kernels. On the CPU, the kernels themselves refuse types.
pub fn has_kernels(x: &Tensor) -> bool {
    let known = || matches!(x.dtype(), DType::F32 | DType::BF16);
    x.device().is_cpu() || (cfg!(feature = "cuda") && x.device().is_cuda() && known())
}
