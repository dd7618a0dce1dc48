//! Buffers that MPI reads and writes in place.

use std::ffi::c_void;

use anyhow::bail;
use candle_core::{CpuStorage, DType, Device, Storage, Tensor, WithDType};
use half::{bf16, f16};

/// A buffer that becomes a tensor without a copy.
pub enum Numbers {
    F32(Vec<f32>),
    BF16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Numbers {
    pub fn zeros(dtype: DType, count: usize) -> anyhow::Result<Self> {
        Ok(match dtype {
            DType::F32 => Self::F32(vec![0.0; count]),
            DType::BF16 => Self::BF16(vec![bf16::ZERO; count]),
            DType::F16 => Self::F16(vec![f16::ZERO; count]),
            dtype => bail!("{dtype:?} cannot be sharded"),
        })
    }

    /// Returns their address, which moving `self` does not change.
    pub fn address(&mut self) -> *mut c_void {
        match self {
            Self::F32(numbers) => numbers.as_mut_ptr().cast(),
            Self::BF16(numbers) => numbers.as_mut_ptr().cast(),
            Self::F16(numbers) => numbers.as_mut_ptr().cast(),
        }
    }

    /// Returns the tensor (n), on the CPU
    pub fn into_tensor(self) -> anyhow::Result<Tensor> {
        let cpu = &Device::Cpu;
        let tensor = match self {
            Self::F32(numbers) => flat(numbers, cpu),
            Self::BF16(numbers) => flat(numbers, cpu),
            Self::F16(numbers) => flat(numbers, cpu),
        };
        Ok(tensor?)
    }
}

fn flat<T: WithDType>(numbers: Vec<T>, cpu: &Device) -> candle_core::Result<Tensor> {
    let count = numbers.len();
    Tensor::from_vec(numbers, count, cpu)
}

/// Returns the address of a contiguous CPU tensor's numbers, valid while a tensor shares them.
pub fn address(tensor: &Tensor) -> anyhow::Result<*const c_void> {
    let (storage, layout) = tensor.storage_and_layout();
    let from = layout.start_offset();
    Ok(match &*storage {
        Storage::Cpu(CpuStorage::F32(numbers)) => numbers[from..].as_ptr().cast(),
        Storage::Cpu(CpuStorage::BF16(numbers)) => numbers[from..].as_ptr().cast(),
        Storage::Cpu(CpuStorage::F16(numbers)) => numbers[from..].as_ptr().cast(),
        _ => bail!("{:?} cannot be sharded", tensor.dtype()),
    })
}
