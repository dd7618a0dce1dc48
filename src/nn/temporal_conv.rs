//! Convolutions over time between layers of pictures: `AllegroTemporalConvLayer`, after the `TemporalConvLayer` of
//! ModelScope's text-to-video model; and single ones that are added to their input.
//!
//! The block is x + conv4(silu(norm4(conv3(.. conv1(silu(norm1(x))))))). Before a convolution of three frames its input is
//! padded by repeats of its ends, and the norm counts these as well. The first convolution may make one frame of two, or two of
//! one; then all see 3x3 pixels, otherwise one.
//!
//! Not causal, and norms are over all frames: clips come whole. Shapes: B samples, F frames, H rows, W columns, C channels.

use candle_core::{Result, Tensor, bail};

use super::coder::{Layer, Modulate, NormConv};
use super::coder_memory::{PieceSize, Tally};
use super::conv3d::{Conv3d, FeatureCache, Geometry, Input, Resample, TemporalPadding};
use super::group_norm::{GroupNorm, NormedFrames};
use super::shuffle::out_of_channels;
use super::weights::Weights;
use crate::ops::modulate::{Modulation, modulated_silu, select};

/// Default of torch.
const EPS: f64 = 1e-5;

/// Change of the number of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameChange {
    /// None.
    None,
    /// One of every two.
    Halve,
    /// Two of each.
    Double,
}

/// Four convolutions over time, added to their input.
pub struct TemporalConvBlock {
    change: FrameChange,
    /// conv1 to conv4: norm, then convolution.
    convs: Vec<NormConv<GroupNorm>>,
}

impl TemporalConvBlock {
    /// Loads the block.
    pub fn load(channels: usize, groups: usize, change: FrameChange, weights: &Weights) -> Result<Self> {
        let (others, first, outputs) = match change {
            FrameChange::None => (Geometry::TIME, Geometry::TIME, channels),
            FrameChange::Halve => (Geometry::CAUSAL, Geometry::PAIR, channels),
            FrameChange::Double => (Geometry::CAUSAL, Geometry::FLAT, 2 * channels),
        };
        let conv = |number: usize| {
            let weights = weights.pp(format!("conv{number}"));
            let (geometry, outputs, seen) = match (number, change) {
                (1, FrameChange::Halve | FrameChange::Double) => (first, outputs, NormedFrames::All),
                _ => (others, channels, NormedFrames::EndsTwice),
            };
            let place = if [2, 3].contains(&number) { 3 } else { 2 }; // after a dropout, or not
            let conv = Conv3d::load(channels, outputs, geometry, false, weights.pp(place))?;
            let stride = if geometry == Geometry::PAIR { 2 } else { 1 };
            Ok(NormConv {
                norm: GroupNorm::load(channels, groups, EPS, weights.pp(0))?.over(seen),
                conv: conv.with_frame_stride(stride),
            })
        };
        Ok(Self {
            change,
            convs: (1..=4).map(conv).collect::<Result<_>>()?,
        })
    }

    /// Convolves pairs of frames (B, F, H, W, C) -> (B, F/2, H, W, C)
    fn halved(x: &Tensor, NormConv { norm, conv }: &NormConv<GroupNorm>) -> Result<Tensor> {
        let frames = x.dim(1)?;
        if !frames.is_multiple_of(2) {
            bail!("{frames} frames do not fall into pairs");
        }
        let modulation = Modulate::<()>::modulation(norm, x, &())?;
        let tables = Modulation {
            scale: &modulation.scale,
            shift: &modulation.shift,
            rms_eps: modulation.rms_eps,
        };
        // The first frame is the past of the others, of which every second one ends a pair.
        let first = modulated_silu(&x.narrow(1, 0, 1)?.contiguous()?, tables)?;
        let input = Input {
            x: &x.narrow(1, 1, frames - 1)?.contiguous()?,
            past: TemporalPadding::Frames(&first),
            modulation: Some(&modulation),
            resample: Resample::None,
        };
        Ok(conv.forward(input)?.0)
    }
}

impl<S> Layer<S> for TemporalConvBlock {
    /// Forward pass (B, F, H, W, C) -> (B, F', H, W, C)
    fn forward(&self, x: Tensor, memory: &mut FeatureCache, state: &mut S) -> Result<Tensor> {
        let [first, second, third, last] = &self.convs[..] else {
            bail!("a block of {} convolutions", self.convs.len());
        };
        let mut convolve = |NormConv { norm, conv }: &NormConv<GroupNorm>, x: &Tensor| {
            memory.convolve(conv, x, Some(&norm.modulation(x, state)?))
        };
        let frames = x.dim(1)?;
        let mut h = match self.change {
            FrameChange::None => convolve(first, &x)?,
            FrameChange::Halve => Self::halved(&x, first)?,
            FrameChange::Double => out_of_channels(&convolve(first, &x)?, [2, 1, 1])?.contiguous()?,
        };
        let onto = match self.change {
            FrameChange::None => x,
            FrameChange::Halve => selected(x, (0..frames).step_by(2))?,
            FrameChange::Double => selected(x, (0..2 * frames).map(|frame| frame / 2))?,
        };
        h = convolve(second, &h)?;
        h = convolve(third, &h)?;
        memory.convolve_onto(onto, &last.conv, &h, Some(&last.norm.modulation(&h, state)?))
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        let [first, second, third, last] = &self.convs[..] else {
            return x;
        };
        let mut h = tally.convolve(&first.conv, x, Resample::None);
        let frames = match self.change {
            FrameChange::None => x.size[0],
            FrameChange::Halve => x.size[0] / 2,
            FrameChange::Double => 2 * x.size[0],
        };
        let onto = x.with_frames(frames);
        if self.change == FrameChange::Double {
            tally.hold(onto); // in other order
            tally.free(h);
            h = onto;
        }
        if self.change != FrameChange::None {
            tally.hold(onto);
            tally.free(x);
        }
        for conv in [second, third] {
            let y = tally.convolve(&conv.conv, h, Resample::None);
            tally.free(h);
            h = y;
        }
        tally.convolve_onto(&last.conv, h);
        tally.free(h);
        onto
    }
}

/// Selects frames of x, which is dropped.
fn selected(x: Tensor, frames: impl Iterator<Item = usize>) -> Result<Tensor> {
    select(&x, 1, frames)
}

/// y + conv(y) for y = x, or silu(norm(x)); the convolution sees three frames of a pixel, zeros before the first and after
/// the last.
pub struct TemporalConv {
    norm: Option<GroupNorm>,
    conv: Conv3d,
}

impl TemporalConv {
    /// Loads the convolution, after a norm that is given.
    pub fn load(channels: usize, norm: Option<GroupNorm>, weights: Weights) -> Result<Self> {
        let conv = Conv3d::onto_itself(channels, weights)?;
        Ok(Self { norm, conv })
    }
}

impl<S> Layer<S> for TemporalConv {
    /// Forward pass (B, F, H, W, C) -> (B, F, H, W, C)
    fn forward(&self, x: Tensor, _memory: &mut FeatureCache, state: &mut S) -> Result<Tensor> {
        let modulation = self.norm.as_ref().map(|norm| norm.modulation(&x, state)).transpose()?;
        let input = Input {
            x: &x,
            past: TemporalPadding::ZerosAround,
            modulation: modulation.as_ref(),
            resample: Resample::None,
        };
        Ok(self.conv.forward(input)?.0)
    }

    fn measure(&self, x: PieceSize, tally: &mut Tally) -> PieceSize {
        Layer::<S>::measure(&self.conv, x, tally)
    }
}
