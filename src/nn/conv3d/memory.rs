//! What causal convolutions remember of the frames before a piece of a clip.

use candle_core::{Result, Tensor, bail};

use super::{Conv3d, Input, Modulation, Past, Resample};

/// The last input frames of every causal convolution. A coder passes its convolutions in the same order for every
/// piece, so the order is all the address they need.
pub struct Memory {
    before: Past<'static>,
    pasts: Vec<Option<Tensor>>, // (B, kt - 1, H, W, C) each
    next: usize,
    pieces: usize,
    keeps: bool,
}

impl Memory {
    /// Of no frames yet; `before` the first lies this.
    pub fn new(before: Past<'static>) -> Self {
        Self {
            before,
            pasts: Vec::new(),
            next: 0,
            pieces: 0,
            keeps: true,
        }
    }

    /// For a clip that comes whole, of which nothing need be kept.
    pub fn whole(before: Past<'static>) -> Self {
        Self {
            keeps: false,
            ..Self::new(before)
        }
    }

    /// To be called before each piece of a clip.
    pub fn rewind(&mut self) {
        self.next = 0;
        self.pieces += 1;
    }

    /// Whether this is the first piece.
    pub fn is_first(&self) -> bool {
        self.pieces < 2
    }

    /// conv(silu(x * scale + shift)), or conv(x) where there is no modulation.
    pub fn convolve(&mut self, conv: &Conv3d, x: &Tensor, modulation: Option<&Modulation>) -> Result<Tensor> {
        self.step(x, modulation, |input| conv.forward(input))
    }

    /// As [`convolve`](Self::convolve), added to `onto` in its memory.
    pub fn convolve_onto(
        &mut self,
        onto: Tensor,
        conv: &Conv3d,
        x: &Tensor,
        modulation: Option<&Modulation>,
    ) -> Result<Tensor> {
        self.step(x, modulation, |input| conv.forward_onto(onto, input))
    }

    /// Leaves a convolution out of this piece. The next piece will find `past`, or what lies before a clip.
    pub fn skip(&mut self, past: Option<Tensor>) -> Result<()> {
        *self.slot()? = past;
        Ok(())
    }

    fn step(
        &mut self,
        x: &Tensor,
        modulation: Option<&Modulation>,
        forward: impl FnOnce(Input) -> Result<(Tensor, Option<Tensor>)>,
    ) -> Result<Tensor> {
        let past = if self.keeps { self.slot()?.take() } else { None };
        let (y, new_past) = forward(Input {
            x,
            past: past.as_ref().map_or(self.before, Past::Frames),
            modulation,
            resample: Resample::None,
        })?;
        if self.keeps {
            self.pasts[self.next - 1] = new_past;
        }
        Ok(y)
    }

    fn slot(&mut self) -> Result<&mut Option<Tensor>> {
        if self.next == self.pasts.len() {
            self.pasts.push(None);
        }
        self.next += 1;
        match self.pasts.get_mut(self.next - 1) {
            Some(slot) => Ok(slot),
            None => bail!("a convolution was left out of a piece of a clip"),
        }
    }
}
