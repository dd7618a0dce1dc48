//! Feature cache of causal convolutions: the frames before a piece of a clip.

use candle_core::{Result, Tensor, bail};

use super::{Conv3d, Input, Modulation, Resample, TemporalPadding};

/// The last input frames of every causal convolution. A coder runs its convolutions in the same order for every piece,
/// so they are identified by that order.
pub struct FeatureCache {
    before: TemporalPadding<'static>,
    pasts: Vec<Option<Tensor>>, // (B, kt - 1, H, W, C) each
    next: usize,
    pieces: usize,
    keeps: bool,
}

impl FeatureCache {
    /// Empty cache; `before` precedes the first frame.
    pub fn new(before: TemporalPadding<'static>) -> Self {
        Self {
            before,
            pasts: Vec::new(),
            next: 0,
            pieces: 0,
            keeps: true,
        }
    }

    /// Cache for a clip that comes whole, which stores nothing.
    pub fn whole(before: TemporalPadding<'static>) -> Self {
        Self {
            keeps: false,
            ..Self::new(before)
        }
    }

    /// Must be called before each piece of a clip.
    pub fn rewind(&mut self) {
        self.next = 0;
        self.pieces += 1;
    }

    /// Returns true for the first piece.
    pub fn is_first(&self) -> bool {
        self.pieces < 2
    }

    /// Computes conv(silu(x * scale + shift)), or conv(x) without a modulation.
    pub fn convolve(&mut self, conv: &Conv3d, x: &Tensor, modulation: Option<&Modulation>) -> Result<Tensor> {
        self.step(x, modulation, |input| conv.forward(input))
    }

    /// Same as [`convolve`](Self::convolve), added to `onto` in its memory.
    pub fn convolve_onto(
        &mut self,
        onto: Tensor,
        conv: &Conv3d,
        x: &Tensor,
        modulation: Option<&Modulation>,
    ) -> Result<Tensor> {
        self.step(x, modulation, |input| conv.forward_onto(onto, input))
    }

    /// Skips a convolution for this piece. The next piece sees `past`, or the padding before a clip.
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
            past: past.as_ref().map_or(self.before, TemporalPadding::Frames),
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
