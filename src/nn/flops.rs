//! Floating-point operations of a transformer's blocks, for benchmarks: those of their large products, each counted by
//! the layer that computes it. Norms, activations and adapters are not counted.

use std::iter::Sum;
use std::ops::Add;

/// Floating-point operations of one sample, forward.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Flops {
    /// Those of linear layers.
    pub linear: f64,
    /// Those of the two products within attention.
    pub attention: f64,
}

impl Flops {
    /// Returns the operations of a training step without recomputation: linear layers compute one gradient (their
    /// weights are frozen); attention has five products backward for two forward.
    pub fn step(&self) -> f64 {
        2.0 * self.linear + 3.5 * self.attention
    }
}

impl Add for Flops {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            linear: self.linear + other.linear,
            attention: self.attention + other.attention,
        }
    }
}

impl Sum for Flops {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}
