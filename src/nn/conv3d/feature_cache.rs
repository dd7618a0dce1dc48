//! Feature cache of convolutions over time: what a piece of a clip needs of the pieces before it.
//!
//! A causal convolution keeps its last kt - 1 input frames. A centred one sees (kt - 1) / 2 frames ahead, so its output
//! lags by as many frames behind its input, until the last piece: then it catches up. What is added to its output
//! waits for as long.

use candle_core::{Result, Tensor, bail};

use super::{Conv3d, Input, Modulation, Resample, TemporalPadding};

/// Frames that the layers of a coder keep from piece to piece. They run in the same order for every piece, so they are
/// identified by that order.
pub struct FeatureCache {
    before: TemporalPadding<'static>,
    slots: Vec<Slot>,
    next: usize,
    pieces: usize,
    keeps: bool,
    last: bool,
}

/// Frames that one use of the cache keeps.
#[derive(Default)]
struct Slot {
    kept: Option<Tensor>,
    used: bool,
}

impl FeatureCache {
    /// Empty cache; `before` precedes the first frame.
    pub fn new(before: TemporalPadding<'static>) -> Self {
        Self {
            before,
            slots: Vec::new(),
            next: 0,
            pieces: 0,
            keeps: true,
            last: false,
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

    /// Returns the place of the next layer, for [`go_back`](Self::go_back).
    pub fn place(&self) -> usize {
        self.next
    }

    /// Returns to a place, to run the layers after it once more, on later frames.
    pub fn go_back(&mut self, place: usize) {
        self.next = place;
    }

    /// Says if the frames that the next layer gets are a clip's last ones.
    pub fn set_last(&mut self, last: bool) {
        self.last = last;
    }

    /// Returns true if the output of convolutions lags behind their input.
    pub fn lags(&self) -> bool {
        self.keeps && matches!(self.before, TemporalPadding::Centred)
    }

    /// Returns true for the first piece.
    pub fn is_first(&self) -> bool {
        self.pieces < 2
    }

    /// Returns true when a layer's first frames pass, in whichever piece they do.
    pub fn starts(&mut self) -> Result<bool> {
        match self.keeps {
            true => Ok(!std::mem::replace(&mut self.slot()?.used, true)),
            false => Ok(true),
        }
    }

    /// Returns what `make` returns for a layer's first frames.
    pub fn once(&mut self, make: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        if !self.keeps {
            return make();
        }
        let slot = self.slot()?;
        if slot.kept.is_none() {
            slot.kept = Some(make()?);
        }
        match &slot.kept {
            Some(kept) => Ok(kept.clone()),
            None => bail!("a layer keeps nothing"),
        }
    }

    /// Computes conv(silu(x * scale + shift)), or conv(x) without a modulation.
    pub fn convolve(&mut self, conv: &Conv3d, x: &Tensor, modulation: Option<&Modulation>) -> Result<Tensor> {
        if self.lags() && conv.reach() > 0 {
            return self.convolve_late(conv, x, modulation);
        }
        self.step(conv, x, modulation, |input| conv.forward(input))
    }

    /// Same as [`convolve`](Self::convolve), added to `onto` in its memory if possible; to the frames of it that the
    /// output has reached, where it lags.
    pub fn convolve_onto(
        &mut self,
        onto: Tensor,
        conv: &Conv3d,
        x: &Tensor,
        modulation: Option<&Modulation>,
    ) -> Result<Tensor> {
        if self.lags() {
            let y = self.convolve(conv, x, modulation)?;
            return self.wait(onto, y.dim(1)?)? + y;
        }
        self.step(conv, x, modulation, |input| conv.forward_onto(onto, input))
    }

    /// Skips a convolution for this piece. The next piece sees `past`, or the padding before a clip.
    pub fn skip(&mut self, past: Option<Tensor>) -> Result<()> {
        self.slot()?.kept = past;
        Ok(())
    }

    /// Convolves with frames on both sides: the result lags behind x, by nothing after the last piece.
    fn convolve_late(&mut self, conv: &Conv3d, x: &Tensor, modulation: Option<&Modulation>) -> Result<Tensor> {
        let (last, frames) = (self.last, x.dim(1)?);
        let slot = self.slot()?;
        let past = slot.kept.take();
        let input = |x, past| Input {
            x,
            past,
            modulation,
            resample: Resample::None,
        };
        let (y, new_past) = match (&past, last) {
            (None, true) => return Ok(conv.forward(input(x, TemporalPadding::Centred))?.0),
            (None, false) => {
                // The first frame repeated twice, of which the first is one too many.
                let (y, past) = conv.forward(input(x, TemporalPadding::First))?;
                let ahead = conv.reach() / 2;
                (y.narrow(1, ahead, frames - ahead)?.contiguous()?, past)
            }
            (Some(past), false) => conv.forward(input(x, TemporalPadding::Frames(past)))?,
            (Some(past), true) => {
                let end = x.narrow(1, frames - 1, 1)?.repeat((1, conv.reach() / 2, 1, 1, 1))?;
                let x = Tensor::cat(&[x, &end], 1)?;
                conv.forward(input(&x, TemporalPadding::Frames(past)))?
            }
        };
        slot.kept = new_past;
        Ok(y)
    }

    /// Returns the next `frames` frames of what comes, and keeps the others.
    fn wait(&mut self, coming: Tensor, frames: usize) -> Result<Tensor> {
        let slot = self.slot()?;
        let all = match slot.kept.take() {
            Some(kept) => Tensor::cat(&[kept, coming], 1)?,
            None => coming,
        };
        match all.dim(1)?.checked_sub(frames) {
            Some(0) => Ok(all),
            Some(more) => {
                slot.kept = Some(all.narrow(1, frames, more)?.force_contiguous()?);
                all.narrow(1, 0, frames)?.contiguous()
            }
            None => bail!("{frames} frames were expected, not {:?}", all.dims()),
        }
    }

    fn step(
        &mut self,
        conv: &Conv3d,
        x: &Tensor,
        modulation: Option<&Modulation>,
        forward: impl FnOnce(Input) -> Result<(Tensor, Option<Tensor>)>,
    ) -> Result<Tensor> {
        let past = if self.keeps { self.slot()?.kept.take() } else { None };
        let (past, x) = match past {
            Some(past) if conv.frame_stride() > 1 => {
                let (past, x) = shifted(&past, x, conv.frame_stride() - 1)?;
                (Some(past), x)
            }
            past => (past, x.clone()),
        };
        let (y, new_past) = forward(Input {
            x: &x,
            past: past.as_ref().map_or(self.before, TemporalPadding::Frames),
            modulation,
            resample: Resample::None,
        })?;
        if self.keeps {
            self.slots[self.next - 1].kept = new_past;
        }
        Ok(y)
    }

    fn slot(&mut self) -> Result<&mut Slot> {
        if self.next == self.slots.len() {
            self.slots.push(Slot::default());
        }
        self.next += 1;
        match self.slots.get_mut(self.next - 1) {
            Some(slot) => Ok(slot),
            None => bail!("a convolution was left out of a piece of a clip"),
        }
    }
}

/// Moves the first frames of x to the past, of which the oldest fall away: of a clip whose first frame comes alone, the
/// next result with a stride of n is that of frame n.
fn shifted(past: &Tensor, x: &Tensor, by: usize) -> Result<(Tensor, Tensor)> {
    let (reach, frames) = (past.dim(1)?, x.dim(1)?);
    if by >= frames {
        bail!("{frames} frames are too few for a stride of {}", by + 1);
    }
    let all = Tensor::cat(&[past, &x.narrow(1, 0, by)?], 1)?;
    let past = all.narrow(1, by, reach)?.contiguous()?;
    Ok((past, x.narrow(1, by, frames - by)?.contiguous()?))
}
