//! The other parts of tiny checkpoints on a GPU beside the CPU: autoencoders there and back, whole and in tiles, text
//! encoders, and what an image says. Errors are ||a - b|| / ||b||: a decoder of made-up weights has single pixels where rounding grows.

use std::path::Path;

use anyhow::ensure;
use candle_core::{DType, Device, Result, Tensor};

use super::row::{Row, difference, distance, poison};
use crate::models::family::{Beside, Canvas, ClipEncoder, Family, ImageCondition, TakesImage};
use crate::models::{self, FamilyName};
use crate::ops::attention::way;
use crate::rng::Rng;

/// Frames, height and width, of which a checkpoint is given the first that it takes.
const SIZES: [[usize; 3]; 2] = [[9, 32, 48], [9, 64, 96]];

/// The same where a frame should be larger than a tile.
const LARGE: [usize; 3] = [9, 96, 128];

const PROMPT: &str = "A red ball rolls over a green floor";

/// What a part of a checkpoint gives, by name.
type Given = Vec<(&'static str, Tensor)>;

/// Clips to latents and back.
pub fn vae(folder: &Path, name: &str, device: &Device, seed: u64) -> anyhow::Result<Vec<Row>> {
    compare(folder, name, device, |family, device| {
        there_and_back(family, device, seed)
    })
}

/// The same in tiles, as far as the checkpoint's settings have frames of this size cut.
pub fn tiling(folder: &Path, name: &str, device: &Device, seed: u64) -> anyhow::Result<Vec<Row>> {
    let family = models::open(folder, FamilyName::Auto, DType::F32, &Device::Cpu)?;
    let whole = encoded(&*family.clip_encoder(false, false)?, &Device::Cpu, LARGE, seed)?;
    let tiles = encoded(&*family.clip_encoder(true, false)?, &Device::Cpu, LARGE, seed)?;
    ensure!(
        difference(&tiles, &whole)? > 0.0,
        "frames of {LARGE:?} are not cut into tiles"
    );
    compare(folder, name, device, |family, device| {
        let latents = encoded(&*family.clip_encoder(true, false)?, device, LARGE, seed)?;
        Ok(vec![("latents by tiles", latents)])
    })
}

/// A prompt.
pub fn text(folder: &Path, name: &str, device: &Device) -> anyhow::Result<Vec<Row>> {
    compare(folder, name, device, |family, _| {
        Ok(vec![("prompt", family.embed(&[PROMPT])?.hidden)])
    })
}

/// An image to start from: its latents, and what an image encoder makes of it.
pub fn image(folder: &Path, name: &str, device: &Device, seed: u64) -> anyhow::Result<Vec<Row>> {
    compare(folder, name, device, |family, device| {
        ensure!(family.takes_image() != TakesImage::Never, "it takes no image");
        let (canvas, [_, height, width]) = canvas(family)?;
        let image = smooth([1, height, width], seed, device)?.squeeze(2)?; // (1, 3, H, W)
        Ok(match family.image_condition(&image, &canvas, &mut Rng::new(seed))? {
            ImageCondition::First(latents) => vec![("image", latents)],
            ImageCondition::Beside(Beside { latents, tokens, .. }) => {
                let tokens = tokens.map(|tokens| ("image tokens", tokens));
                [("image", latents)].into_iter().chain(tokens).collect()
            }
        })
    })
}

/// What a part gives on `device` in either type, beside the CPU in f32.
fn compare(
    folder: &Path,
    name: &str,
    device: &Device,
    part: impl Fn(&dyn Family, &Device) -> anyhow::Result<Given>,
) -> anyhow::Result<Vec<Row>> {
    let on = |dtype: DType, device: &Device| {
        let family = models::open(folder, FamilyName::Auto, dtype, device)?;
        part(&*family, device)
    };
    let theirs = on(DType::F32, &Device::Cpu)?;
    let mut rows = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        poison(device)?;
        way::take();
        let ours = on(dtype, device)?;
        let attention = way::take();
        for ((what, ours), (_, theirs)) in ours.iter().zip(&theirs) {
            rows.push(Row {
                what: format!("{name} {what} {dtype:?}"),
                error: distance(ours, theirs)?,
                most: if dtype == DType::F32 { 1e-3 } else { 5e-2 },
                attention: attention.clone(),
            });
        }
    }
    Ok(rows)
}

/// Latents of a clip, and the frames of latents that are drawn.
fn there_and_back(family: &dyn Family, device: &Device, seed: u64) -> anyhow::Result<Given> {
    let (canvas, size) = canvas(family)?;
    let latents = encoded(&*family.clip_encoder(false, false)?, device, size, seed)?;
    let mut rng = Rng::new(seed);
    let drawn = rng.randn(canvas.shape.iter().product());
    let drawn = Tensor::from_vec(drawn, &canvas.shape[..], device)?.to_dtype(canvas.dtype)?;
    let mut decoded = Vec::new();
    family.decode(&drawn, &canvas, &mut rng, &mut |frames| {
        decoded.push(frames);
        Ok(())
    })?;
    Ok(vec![("latents", latents), ("frames", Tensor::cat(&decoded, 2)?)])
}

/// Latents of the first size that the checkpoint takes, and the size.
fn canvas(family: &dyn Family) -> anyhow::Result<(Canvas, [usize; 3])> {
    let of = |[frames, height, width]: [usize; 3]| family.canvas(frames, height, width);
    let [first, second] = SIZES;
    match of(first) {
        Ok(canvas) => Ok((canvas, first)),
        Err(_) => Ok((of(second)?, second)),
    }
}

/// The mean of a clip's posterior.
fn encoded(encoder: &dyn ClipEncoder, device: &Device, size: [usize; 3], seed: u64) -> anyhow::Result<Tensor> {
    Ok(encoder.encode(&smooth(size, seed, device)?)?.mean)
}

/// A clip (1, 3, T, H, W) of -1..1: waves, with some noise on them.
fn smooth([frames, height, width]: [usize; 3], seed: u64, device: &Device) -> Result<Tensor> {
    let count = 3 * frames * height * width;
    let mut numbers = Rng::new(seed).randn(count);
    for (at, number) in numbers.iter_mut().enumerate() {
        let (column, row) = (at % width, at / width % height);
        let (frame, colour) = (at / width / height % frames, at / width / height / frames);
        let wave = (column as f32 * 0.13 + frame as f32 * 0.4).sin() * (row as f32 * 0.09 + colour as f32).cos();
        *number = (0.8 * wave + 0.1 * *number).clamp(-1.0, 1.0);
    }
    Tensor::from_vec(numbers, (1, 3, frames, height, width), device)
}
