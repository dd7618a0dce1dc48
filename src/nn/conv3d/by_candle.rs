//! A convolution as a sum of candle's `conv2d`, one for each frame of the kernel: for other devices than the CPU.

use candle_core::{Result, Tensor, bail};

use super::frames;
use super::{Conv3d, Input, Past, Resample};

impl Conv3d {
    pub(super) fn forward_by_candle(
        &self,
        input: &Input,
        slices: &[Tensor],
        bias: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let x = frames::prepared(input)?; // (B, F, H, W, C)
        let reach = slices.len() - 1;
        let x = match (reach, input.past) {
            (0, _) => x,
            (_, Past::Frames(past)) => Tensor::cat(&[past, &x], 1)?,
            (_, Past::Zeros) => x.pad_with_zeros(1, reach, 0)?,
            (_, Past::Centred) => x.pad_with_same(1, reach / 2, reach / 2)?,
            (_, Past::First) => Tensor::cat(&[&x.narrow(1, 0, 1)?.repeat((1, reach, 1, 1, 1))?, &x], 1)?,
        };
        let (batch, frames, height, width, channels) = x.dims5()?;
        let past = (reach > 0 && !matches!(input.past, Past::Centred))
            .then(|| x.narrow(1, frames - reach, reach)?.contiguous())
            .transpose()?;
        let stride = self.frame_stride;
        let out_frames = (frames - reach).div_ceil(stride);
        let computed: Vec<u32> = (0..out_frames).map(|frame| (frame * stride) as u32).collect();
        let computed = Tensor::from_vec(computed, out_frames, x.device())?;
        let x = x.permute((0, 1, 4, 2, 3))?; // (B, F, C, H, W)
        let [rows, columns] = [self.geometry.pad_rows, self.geometry.pad_columns];
        let mut sum: Option<Tensor> = None;
        for (dt, weight) in slices.iter().enumerate() {
            let seen = match stride {
                1 => x.narrow(1, dt, out_frames)?,
                _ => x.contiguous()?.index_select(&(&computed + dt as f64)?, 1)?,
            };
            let x = seen
                .reshape((batch * out_frames, channels, height, width))?
                .pad_with_zeros(2, rows[0], rows[1])?
                .pad_with_zeros(3, columns[0], columns[1])?;
            let y = x.conv2d(weight, 0, self.geometry.stride, 1, 1)?; // (B F, O, H', W')
            sum = Some(match sum {
                Some(sum) => (sum + y)?,
                None => y,
            });
        }
        let Some(y) = sum else { bail!("a kernel of no frames") };
        let y = y.broadcast_add(&bias.reshape((1, self.outputs, 1, 1))?)?;
        let (_, _, out_height, out_width) = y.dims4()?;
        let y = y
            .reshape((batch, out_frames, self.outputs, out_height, out_width))?
            .permute((0, 1, 3, 4, 2))?;
        let y = match input.resample {
            Resample::DoubleSizeAndFrames => frames::repeat_frames(&y)?,
            _ => y.contiguous()?,
        };
        Ok((y, past))
    }
}
