//! The causal convolutions' memory of the frames before a batch of frames.

use candle_core::{Result, Tensor, bail};

use crate::nn::Weights;
use crate::nn::conv3d::{Conv3d, Geometry, Input, Modulation, Past, Resample};

/// 3x3x3 with a border of zeros.
const CAUSAL: Geometry = Geometry {
    kernel: [3, 3, 3],
    stride: 1,
    pad_rows: [1, 1],
    pad_columns: [1, 1],
};

/// Reads `conv`, as `CogVideoXCausalConv3d` calls it.
pub fn causal(channels: usize, outputs: usize, weights: Weights) -> Result<Conv3d> {
    Conv3d::load(channels, outputs, CAUSAL, false, weights.pp("conv"))
}

/// The last input frames of every causal convolution. A coder passes its convolutions in the same order for every
/// batch of frames, so the order is all the address they need.
#[derive(Default)]
pub struct Memory {
    pasts: Vec<Option<Tensor>>, // (B, 2, H, W, C) each
    next: usize,
}

impl Memory {
    /// To be called before each batch of frames.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// conv(silu(x * scale + shift)), or conv(x) where there is no modulation.
    pub fn convolve(&mut self, conv: &Conv3d, x: &Tensor, modulation: Option<&Modulation>) -> Result<Tensor> {
        self.step(x, modulation, |input| conv.forward(input))
    }

    /// onto + conv(silu(x * scale + shift)), in the memory of `onto`.
    pub fn convolve_onto(&mut self, onto: Tensor, conv: &Conv3d, x: &Tensor, norm: &Modulation) -> Result<Tensor> {
        self.step(x, Some(norm), |input| conv.forward_onto(onto, input))
    }

    fn step(
        &mut self,
        x: &Tensor,
        modulation: Option<&Modulation>,
        forward: impl FnOnce(Input) -> Result<(Tensor, Option<Tensor>)>,
    ) -> Result<Tensor> {
        if self.next == self.pasts.len() {
            self.pasts.push(None);
        }
        let Some(slot) = self.pasts.get_mut(self.next) else {
            bail!("a convolution was left out of a batch of frames");
        };
        self.next += 1;
        let past = slot.take();
        let (y, new_past) = forward(Input {
            x,
            past: past.as_ref().map_or(Past::First, Past::Frames),
            modulation,
            resample: Resample::None,
        })?;
        *slot = new_past;
        Ok(y)
    }
}
