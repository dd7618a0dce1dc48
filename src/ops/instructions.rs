//! Instructions that products run on, on the CPU. Others sum in another order: results differ in their last digits.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{bf16, simd};

/// Instructions for products, by the type of their inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instructions {
    /// Those for products in f32.
    pub f32: String,
    /// Those for products in bf16: the same where there are none of its own.
    pub bf16: String,
}

impl Instructions {
    /// Returns those that this machine has.
    pub fn detect() -> Self {
        let f32 = simd::Isa::detect().name();
        let bf16 = bf16::Isa::detect().map_or(f32, bf16::Isa::name);
        Self {
            f32: f32.into(),
            bf16: bf16.into(),
        }
    }
}

impl fmt::Display for Instructions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f32 by {}, bf16 by {}", self.f32, self.bf16)
    }
}
