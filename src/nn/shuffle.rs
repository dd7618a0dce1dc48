//! Pixels into channels and back: t x h x w neighbours' channels become one pixel's (`pixel_unshuffle` in three dimensions).
//!
//! Letters: B batch, F frames, H rows, W columns, C channels.

use candle_core::{Result, Tensor};

/// (B, t F, h H, w W, C) -> (B, F, H, W, C t h w), channels slowest
pub fn into_channels(x: &Tensor, [t, h, w]: [usize; 3]) -> Result<Tensor> {
    let (batch, frames, height, width, channels) = x.dims5()?;
    let (frames, height, width) = (frames / t, height / h, width / w);
    x.reshape(&[batch, frames, t, height, h, width, w, channels][..])?
        .permute(&[0, 1, 3, 5, 7, 2, 4, 6][..])?
        .reshape((batch, frames, height, width, channels * t * h * w))
}

/// (B, F, H, W, t h w C) -> (B, t F, h H, w W, C), channels fastest
pub fn out_of_channels(x: &Tensor, [t, h, w]: [usize; 3]) -> Result<Tensor> {
    let (batch, frames, height, width, channels) = x.dims5()?;
    let channels = channels / (t * h * w);
    x.reshape(&[batch, frames, height, width, t, h, w, channels][..])?
        .permute(&[0, 1, 4, 2, 5, 3, 6, 7][..])?
        .reshape((batch, t * frames, h * height, w * width, channels))
}
