//! Frames in the input format of an autoencoder.

use candle_core::{DType, Device, Result, Tensor};

use crate::video::Frames;

/// Converts frames to (1, 3, F, H, W) in -1..1, f32: x = 2 byte / 255 - 1.
pub fn tensor(frames: Frames) -> Result<Tensor> {
    let Frames {
        data,
        num_frames,
        height,
        width,
    } = frames;
    let pixels = Tensor::from_vec(data, (1, num_frames, height, width, 3), &Device::Cpu)?;
    let pixels = pixels.permute((0, 4, 1, 2, 3))?.to_dtype(DType::F32)?; // (1, 3, F, H, W)
    (pixels * (2.0 / 255.0))? - 1.0
}
