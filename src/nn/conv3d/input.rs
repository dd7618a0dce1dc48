//! What a convolution is given, and what happens to it on the way in.

use candle_core::{DType, Result, Tensor};

/// What a convolution is given.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub x: &'a Tensor, // (B, F, H, W, C)
    pub past: Past<'a>,
    /// Normalises and activates the input.
    pub modulation: Option<&'a Modulation>,
    pub resample: Resample,
}

/// The kt - 1 input frames before the first.
#[derive(Debug, Clone, Copy)]
pub enum Past<'a> {
    /// The first frame, repeated.
    First,
    /// Only half as many, the first frame repeated, and as many after the last, which is repeated too: a frame sees as
    /// far ahead as back, and nobody can go on from there.
    Centred,
    Zeros,
    Frames(&'a Tensor), // (B, kt - 1, H, W, C)
}

impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(x: &'a Tensor) -> Self {
        Self {
            x,
            past: Past::First,
            modulation: None,
            resample: Resample::None,
        }
    }
}

/// `silu(x * scale + shift)` before a convolution. The tables may be coarser than x: the nearest entry counts. Where
/// a clip has an odd number of frames, its first frame and the first table entry belong to each other. Not together
/// with a new size.
#[derive(Debug, Clone)]
pub struct Modulation {
    pub scale: Tensor, // (B, F', H', W', C) f32
    pub shift: Tensor, // (B, F', H', W', C) f32
    /// An RMS norm over the channels of every pixel comes first: x / sqrt(mean(x^2) + eps), with this eps.
    pub rms_eps: Option<f64>,
}

impl Modulation {
    /// An RMS norm of x (B, F, H, W, C), times `scale` (C), and `shift` (C) where it says one: f32 whatever x is.
    pub fn rms(x: &Tensor, eps: f64, scale: &Tensor, shift: Option<&Tensor>) -> Result<Self> {
        let batch = x.dim(0)?;
        let table = |values: &Tensor| {
            let values = values.to_dtype(DType::F32)?.reshape((1, 1, 1, 1, ()))?;
            if batch == 1 {
                Ok(values)
            } else {
                values.repeat((batch, 1, 1, 1, 1))
            }
        };
        let scale = table(scale)?;
        Ok(Self {
            shift: shift.map_or_else(|| scale.zeros_like(), table)?,
            scale,
            rms_eps: Some(eps),
        })
    }
}

/// What happens to the size before a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    None,
    /// The mean of every two frames; where their number is odd, the first stays alone.
    HalveFrames,
    /// Every row and column twice.
    DoubleSize,
    /// Every row, column and frame twice; where their number is odd, the first frame stays alone. Only before a
    /// kernel of one frame: the repeated frames are repeated results.
    DoubleSizeAndFrames,
}
