//! Convolution by candle's `conv2d`, for devices other than the CPU.
//!
//! The kernel's frames are stacked in the channels, with a channel of ones whose weight is the bias: so `conv2d`
//! computes the whole sum, in f32 for any storage type, and rounds once. Such a stack is kt times as large as the clip,
//! and is built for a few frames at a time.

use candle_core::{DType, Result, Tensor, bail};

use super::frames;
use super::{Conv3d, Input, Resample, TemporalPadding};

/// Channels of ones and zeros after the others, filling 16 bytes of bf16, which suits tensor cores.
const ONES: usize = 8;
/// Numbers in the input of one `conv2d`, unless a single frame has more.
pub const STACK: usize = 1 << 27;

/// Converts a weight (O, C, kt, kh, kw) and a bias (O) to the weight of `conv2d`: (O, kt C + 8, kh, kw).
pub(super) fn stacked(weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (outputs, channels, kt, kh, kw) = weight.dims5()?;
    let weight = weight.transpose(1, 2)?.reshape((outputs, kt * channels, kh, kw))?;
    let bias = bias
        .to_dtype(weight.dtype())?
        .reshape((outputs, 1, 1, 1))?
        .pad_with_zeros(1, 0, ONES - 1)?
        .pad_with_zeros(2, 0, kh - 1)?
        .pad_with_zeros(3, 0, kw - 1)?; // at one tap of the kernel, which always sees the ones
    Tensor::cat(&[weight, bias], 1)
}

/// Runs `conv2d` with sums in f32, rounded once. candle's CPU cannot multiply bf16, so it gets f32.
fn conv2d(x: &Tensor, weight: &Tensor, stride: usize) -> Result<Tensor> {
    if x.device().is_cpu() && x.dtype() == DType::BF16 {
        let [wide, weight] = [x, weight].map(|tensor| tensor.to_dtype(DType::F32));
        return wide?.conv2d(&weight?, 0, stride, 1, 1)?.to_dtype(x.dtype());
    }
    x.conv2d(weight, 0, stride, 1, 1)
}

impl Conv3d {
    pub(super) fn forward_by_candle(&self, input: &Input, weight: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let x = frames::prepared(input)?; // (B, F, H, W, C)
        let reach = self.geometry.kernel[0] - 1;
        let x = match (reach, input.past) {
            (0, _) => x,
            (_, TemporalPadding::Frames(past)) => Tensor::cat(&[past, &x], 1)?,
            (_, TemporalPadding::Zeros) => x.pad_with_zeros(1, reach, 0)?,
            (_, TemporalPadding::Centred) => x.pad_with_same(1, reach / 2, reach / 2)?,
            (_, TemporalPadding::First) => Tensor::cat(&[&x.narrow(1, 0, 1)?.repeat((1, reach, 1, 1, 1))?, &x], 1)?,
        };
        let (batch, frames, _, _, _) = x.dims5()?;
        let past = (reach > 0 && !matches!(input.past, TemporalPadding::Centred))
            .then(|| x.narrow(1, frames - reach, reach)?.contiguous())
            .transpose()?;
        let samples = (0..batch).map(|sample| self.of_sample(&x.get(sample)?, weight));
        let y = Tensor::stack(&samples.collect::<Result<Vec<_>>>()?, 0)?; // (B, F', O, H', W')
        let y = y.permute((0, 1, 3, 4, 2))?;
        let y = match input.resample {
            Resample::DoubleSizeAndFrames => frames::repeat_frames(&y)?,
            _ => y.contiguous()?,
        };
        Ok((y, past))
    }

    /// Convolves a sample (F, H, W, C), including the past -> (F', O, H', W')
    fn of_sample(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let [rows, columns] = [self.geometry.pad_rows, self.geometry.pad_columns];
        let x = x
            .permute((0, 3, 1, 2))?
            .contiguous()?
            .pad_with_zeros(2, rows[0], rows[1])?
            .pad_with_zeros(3, columns[0], columns[1])?; // (F, C, H, W)
        let (frames, channels, height, width) = x.dims4()?;
        let (kt, stride) = (self.geometry.kernel[0], self.frame_stride);
        let computed = (frames + 1 - kt).div_ceil(stride);
        let of_frame = (kt * channels + ONES) * height * width;
        let together = (STACK / of_frame.max(1)).clamp(1, computed.max(1));
        let mut pieces = Vec::new();
        for first in (0..computed).step_by(together) {
            let count = together.min(computed - first);
            let seen = |dt: usize| match stride {
                1 => x.narrow(0, first + dt, count),
                _ => frames::select(&x, 0, (first..first + count).map(|frame| frame * stride + dt)),
            };
            let mut stack = (0..kt).map(seen).collect::<Result<Vec<_>>>()?;
            let ones = Tensor::ones((count, 1, height, width), x.dtype(), x.device())?;
            stack.push(ones.pad_with_zeros(1, 0, ONES - 1)?);
            pieces.push(conv2d(&Tensor::cat(&stack, 1)?, weight, self.geometry.stride)?);
        }
        match &pieces[..] {
            [] => bail!("a convolution of no frames"),
            [all] => Ok(all.clone()),
            _ => Tensor::cat(&pieces, 0),
        }
    }
}
