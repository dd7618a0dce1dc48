//! Pixels into channels and back: the channels of t x h x w neighbours become one pixel's (`pixel_unshuffle` in three
//! dimensions).
//!
//! Letters: B batch, F frames, H rows, W columns, C channels, p the size of a patch.

use candle_core::{DType, Result, Tensor};

/// Moves pixels into channels (B, t F, h H, w W, C) -> (B, F, H, W, C t h w), channels slowest
pub fn into_channels(x: &Tensor, [t, h, w]: [usize; 3]) -> Result<Tensor> {
    let (batch, frames, height, width, channels) = x.dims5()?;
    let (frames, height, width) = (frames / t, height / h, width / w);
    x.reshape(&[batch, frames, t, height, h, width, w, channels][..])?
        .permute(&[0, 1, 3, 5, 7, 2, 4, 6][..])?
        .reshape((batch, frames, height, width, channels * t * h * w))
}

/// Moves channels into pixels (B, F, H, W, t h w C) -> (B, t F, h H, w W, C), channels fastest
pub fn out_of_channels(x: &Tensor, [t, h, w]: [usize; 3]) -> Result<Tensor> {
    let (batch, frames, height, width, channels) = x.dims5()?;
    let channels = channels / (t * h * w);
    x.reshape(&[batch, frames, height, width, t, h, w, channels][..])?
        .permute(&[0, 1, 4, 2, 5, 3, 6, 7][..])?
        .reshape((batch, t * frames, h * height, w * width, channels))
}

/// Averages groups of neighbouring channels, (B, F, H, W, n C) -> (B, F, H, W, C), with sums in f32.
pub fn grouped_mean(x: Tensor, channels: usize) -> Result<Tensor> {
    let (batch, frames, height, width, all) = x.dims5()?;
    if all == channels {
        return Ok(x);
    }
    x.reshape(&[batch, frames, height, width, channels, all / channels][..])?
        .to_dtype(DType::F32)?
        .mean(5)?
        .to_dtype(x.dtype())
}

/// Converts (B, C, F, p H, p W) -> (B, F, H, W, C p p), the columns of a patch before its rows. `place` makes the result
/// contiguous where it is needed.
pub fn into_patches(x: &Tensor, p: usize, place: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (batch, channels, frames, height, width) = x.dims5()?;
    let (height, width) = (height / p, width / p);
    let patches = x
        .reshape(&[batch, channels, frames, height, p, width, p][..])?
        .permute(&[0, 2, 3, 5, 1, 6, 4][..])?;
    place(&patches)?.reshape((batch, frames, height, width, channels * p * p))
}

/// Inverts [`into_patches`]: (B, F, H, W, C p p) -> (B, C, F, p H, p W)
pub fn out_of_patches(x: &Tensor, p: usize, place: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (batch, frames, height, width, channels) = x.dims5()?;
    let channels = channels / (p * p);
    let pixels = x
        .reshape(&[batch, frames, height, width, channels, p, p][..])?
        .permute(&[0, 4, 1, 2, 6, 3, 5][..])?;
    place(&pixels)?.reshape((batch, channels, frames, height * p, width * p))
}

/// Reorders the first axis of a convolution's weight or bias, (C n, ...), for [`out_of_channels`]: checkpoints group
/// the n pixels of a channel, here the channels of a pixel are grouped.
pub fn by_pixel(tensor: &Tensor, pixels: usize) -> Result<Tensor> {
    let (all, rest) = (tensor.dim(0)?, &tensor.dims()[1..]);
    tensor
        .reshape([&[all / pixels, pixels], rest].concat())?
        .transpose(0, 1)?
        .reshape(tensor.shape())
}
