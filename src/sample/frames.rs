//! Reads clips from disk as input tensors, and writes denoised latents as clips.

use std::path::Path;

use anyhow::bail;
use candle_core::{DType, Tensor};

use super::Sampled;
use crate::data::pixels;
use crate::models::Family;
use crate::models::family::VideoDecoder;
use crate::nn::Load;
use crate::video::{Clip, Crop, Fit, Select, Writer, select};

/// Reads the first frames of a clip, or an image, cropped to (height, width) at the centre: (1, 3, F, H, W) of -1..1.
pub fn read(path: &Path, num_frames: usize, size: (usize, usize)) -> anyhow::Result<Tensor> {
    let clip = Clip::open(path)?;
    for remark in clip.remarks() {
        log::warn!("{}: {}: {remark}", path.display(), remark.heading());
    }
    let Some(wanted) = select(clip.timestamps(), clip.fps(), Select::Head, None, num_frames) else {
        bail!(
            "{}: has {} frames, but {num_frames} are needed",
            path.display(),
            clip.num_frames()
        );
    };
    let fit = Fit::cover((clip.height(), clip.width()), size, Crop::Center);
    Ok(pixels::tensor(clip.decode_fitted(&wanted, &fit)?)?)
}

/// Decodes and writes frames as they come, calling `see` with each picture (H, W, 3). Returns their number. Loads, uses and
/// frees the decoder.
pub fn write(
    family: &dyn Family,
    load: &Load,
    sampled: &Sampled,
    mut writer: Writer,
    mut see: impl FnMut(&[u8]),
) -> anyhow::Result<usize> {
    let count = decode(&*family.video_decoder(load)?, sampled, |frame| {
        writer.push(frame)?;
        see(frame);
        Ok(())
    })?;
    writer.finish()?;
    Ok(count)
}

/// Decodes, calling `see` with each picture (H, W, 3) as it comes. Returns their number.
pub fn decode(
    decoder: &dyn VideoDecoder,
    sampled: &Sampled,
    mut see: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let mut count = 0;
    let mut rng = sampled.rng.clone();
    decoder.decode(&sampled.latents, &sampled.size, &mut rng, &mut |frames| {
        for frame in pictures(&frames)? {
            see(&frame)?;
            count += 1;
        }
        Ok(())
    })?;
    Ok(count)
}

/// Converts (1, 3, F, H, W) of -1..1 to pictures (H, W, 3).
pub fn pictures(frames: &Tensor) -> anyhow::Result<Vec<Vec<u8>>> {
    let frames = frames.squeeze(0)?.permute((1, 2, 3, 0))?.to_dtype(DType::F32)?; // (F, H, W, 3)
    let frames = (((frames * 0.5)? + 0.5)?.clamp(0f32, 1f32)? * 255.0)?
        .round()?
        .to_dtype(DType::U8)?;
    let picture = |n| Ok(frames.get(n)?.flatten_all()?.to_vec1()?);
    (0..frames.dim(0)?).map(picture).collect()
}
