//! Input of a convolution, with the operations that precede it.

use candle_core::{DType, Result, Tensor};

/// Input of a convolution.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// Input (B, F, H, W, C).
    pub x: &'a Tensor, // (B, F, H, W, C)
    /// Frames before the first.
    pub past: TemporalPadding<'a>,
    /// Normalisation and activation of the input.
    pub modulation: Option<&'a Modulation>,
    /// Change of size before the convolution.
    pub resample: Resample,
}

/// The kt - 1 input frames before the first.
#[derive(Debug, Clone, Copy)]
pub enum TemporalPadding<'a> {
    /// The first frame, repeated.
    First,
    /// Half as many repeats of the first frame, and as many of the last one after it: not causal, so the clip must be
    /// whole.
    Centred,
    /// Zeros.
    Zeros,
    /// Half as many zeros, and as many after the last frame, as `torch.nn.Conv3d` pads: the clip must be whole.
    ZerosAround,
    /// Frames (B, kt - 1, H, W, C) of the clip's earlier part.
    Frames(&'a Tensor),
}

impl TemporalPadding<'_> {
    /// Returns true if half of the frames follow the last one.
    pub fn is_centred(&self) -> bool {
        matches!(self, Self::Centred | Self::ZerosAround)
    }
}

impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(x: &'a Tensor) -> Self {
        Self {
            x,
            past: TemporalPadding::First,
            modulation: None,
            resample: Resample::None,
        }
    }
}

/// `silu(x * scale + shift)` before a convolution. The tables may be coarser than x: the nearest entry counts. With an
/// odd number of frames, the first frame has the first table entry to itself. Not together with a new size.
#[derive(Debug, Clone)]
pub struct Modulation {
    /// Scale (B, F', H', W', C), f32.
    pub scale: Tensor,
    /// Shift (B, F', H', W', C), f32.
    pub shift: Tensor,
    /// Epsilon of a preceding RMS norm over the channels of every pixel: x / sqrt(mean(x^2) + eps).
    pub rms_eps: Option<f64>,
}

impl Modulation {
    /// RMS norm of x (B, F, H, W, C), times `scale` (C), plus `shift` (C) if given: f32 for any type of x.
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

/// Change of size before a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// No change.
    None,
    /// The mean of every two frames; an odd first one is kept.
    HalveFrames,
    /// Every row and column twice.
    DoubleSize,
    /// Every row, column and frame twice, except an odd first frame. Only before a kernel of one frame: the repeated
    /// frames are repeated results.
    DoubleSizeAndFrames,
    /// Every row and column twice, and every frame but the first, of a clip that comes whole.
    DoubleSizeAndLaterFrames,
}

impl Resample {
    /// Returns the frames, rows and columns that the convolution sees.
    pub fn seen(self, [frames, height, width]: [usize; 3]) -> [usize; 3] {
        match self {
            Self::None => [frames, height, width],
            Self::HalveFrames => [frames.div_ceil(2), height, width],
            Self::DoubleSize | Self::DoubleSizeAndFrames => [frames, 2 * height, 2 * width],
            Self::DoubleSizeAndLaterFrames => [(2 * frames).saturating_sub(1), 2 * height, 2 * width],
        }
    }
}
