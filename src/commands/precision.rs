//! Number formats on the command line.

use candle_core::DType;

use crate::models::Dtype;

/// Number format of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// 32-bit floating point
    F32,
    /// bfloat16
    Bf16,
}

impl From<Precision> for Dtype {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

impl From<Precision> for DType {
    fn from(precision: Precision) -> Self {
        Dtype::from(precision).into()
    }
}
