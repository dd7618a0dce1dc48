//! Convolution by candle's `conv2d`, for devices other than the CPU.
//!
//! The kernel's frames are stacked in the channels, with a channel of ones whose weight is the bias: so `conv2d`
//! computes the whole sum, in f32 for any storage type, and rounds once. Such a stack is kt times as large as the clip,
//! and is built for a few frames at a time. The operations before it pass a few frames at a time, too, so that a long clip
//! takes little more than its input and its output.

use candle_core::{DType, Result, Tensor, bail};

use super::frames;
use super::{Border, Conv3d, Input, Resample};

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
    /// Computes some frames at a time, and adds them to `onto` in its memory, if given.
    pub(super) fn forward_by_candle(
        &self,
        input: &Input,
        weight: &Tensor,
        onto: Option<Tensor>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (batch, frames, height, width, _) = input.x.dims5()?;
        let seen = input.resample.seen([frames, height, width]);
        let (rows, columns) = self.geometry.output(seen[1], seen[2]);
        let (reach, stride, computed) = (self.reach(), self.frame_stride, seen[0].div_ceil(self.frame_stride));
        let together = self.frames_together(seen);
        let adds = onto.is_some();
        let (mut out, mut past) = (onto, None);
        for first in (0..computed).step_by(together) {
            let count = together.min(computed - first);
            let end = match first + count == computed {
                true => seen[0] + reach,
                false => (first + count - 1) * stride + reach + 1,
            };
            let x = frames::padded(input, first * stride..end, reach)?; // (B, n, H, W, C)
            let y = self.of_frames(&x, weight)?; // (B, count, H', W', O)
            if first + count == computed && reach > 0 && !input.past.is_centred() {
                past = Some(x.narrow(1, x.dim(1)? - reach, reach)?.contiguous()?);
            }
            drop(x);
            let all = match out.take() {
                Some(all) => all,
                None if count == computed => {
                    out = Some(y);
                    break;
                }
                None => Tensor::zeros((batch, computed, rows, columns, self.outputs), y.dtype(), y.device())?,
            };
            let y = if adds { (all.narrow(1, first, count)? + y)? } else { y };
            all.slice_set(&y, 1, first)?;
            out = Some(all);
        }
        let Some(y) = out else {
            bail!("a convolution of no frames");
        };
        let y = match input.resample {
            Resample::DoubleSizeAndFrames => frames::repeat_frames(&y)?,
            _ => y,
        };
        Ok((y, past))
    }

    /// Returns the number of frames of the result that are computed together without kernels of our own, where the input has
    /// these frames, rows and columns after its change of size.
    pub fn frames_together(&self, [frames, height, width]: [usize; 3]) -> usize {
        let of_frame = height * width * self.channels.max(self.outputs);
        (self.most_together / of_frame.max(1)).clamp(1, frames.max(1))
    }

    /// Convolves frames (B, F, H, W, C), including the past -> (B, F', H', W', O)
    fn of_frames(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let samples = (0..x.dim(0)?).map(|sample| self.of_sample(&x.get(sample)?, weight));
        let y = Tensor::stack(&samples.collect::<Result<Vec<_>>>()?, 0)?; // (B, F', O, H', W')
        y.permute((0, 1, 3, 4, 2))?.contiguous()
    }

    /// Convolves a sample (F, H, W, C), including the past -> (F', O, H', W')
    fn of_sample(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let [rows, columns] = [self.geometry.pad_rows, self.geometry.pad_columns];
        let pad = |x: &Tensor, dim, [before, after]: [usize; 2]| match self.geometry.border {
            Border::Zeros => x.pad_with_zeros(dim, before, after),
            Border::Edge => x.pad_with_same(dim, before, after),
        };
        let x = pad(&x.permute((0, 3, 1, 2))?.contiguous()?, 2, rows)?;
        let x = pad(&x, 3, columns)?; // (F, C, H, W)
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
