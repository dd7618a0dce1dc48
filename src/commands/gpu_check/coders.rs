//! Compares the other parts of tiny checkpoints on a GPU with the CPU: autoencoders in both directions, whole and
//! tiled, text encoders, and image conditions. Errors are ||a - b|| / ||b||: in a decoder with random weights, rounding
//! grows in single pixels.

use std::path::Path;

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Result, Tensor};

use super::row::{Row, difference, distance, poison};
use crate::models::family::{ConcatCondition, Family, ImageCondition, ImageMode, LatentSize, VideoEncoder};
use crate::models::tiling::Cuts;
use crate::models::{self, FamilyName};
use crate::nn::Load;
use crate::nn::vae_memory::{VaeMemory, VaeTiling};
use crate::ops::attention::way;
use crate::rng::Rng;

/// Frames, height and width; the first that a checkpoint supports is used. Some want frames by four or by six.
const SIZES: [[usize; 3]; 4] = [[9, 32, 48], [9, 64, 96], [8, 32, 48], [7, 32, 48]];

/// Frames, and tiles by which frames should be larger than a tile.
const LARGE: usize = 9;

const TILES: VaeMemory = VaeMemory {
    tiling: VaeTiling::Always(true),
    ..VaeMemory::WHOLE
};

const PROMPT: &str = "A red ball rolls over a green floor";

/// Largest distance of a part in f32, in bf16, and of frames in bf16: for the tiny autoencoder of Wan diffusers' own frames
/// in bf16 are 0.038 to 0.055 from those in f32 (40 draws, on the CPU).
const MOST: f64 = 1e-3;
const MOST_BF16: f64 = 5e-2;
const MOST_BF16_FRAMES: f64 = 8e-2;

/// Outputs of a part, by name.
type NamedTensors = Vec<(&'static str, Tensor)>;

/// Compares clips to latents and back.
pub fn vae(folder: &Path, name: &str, device: &Device, seed: u64) -> anyhow::Result<Vec<Row>> {
    compare(folder, name, device, |family, load| there_and_back(family, load, seed))
}

/// Same in tiles, if the checkpoint's settings tile frames of this size.
pub fn tiling(folder: &Path, name: &str, device: &Device, seed: u64) -> anyhow::Result<Vec<Row>> {
    let family = models::open(folder, FamilyName::Auto)?;
    let tiling = family.spec().tiling.context("tiles do not line up with latents")?;
    // Half a tile more than a tile.
    let [height, width] = [tiling.height, tiling.width].map(|tiles| tiles.size + tiles.stride / 2 / 32 * 32);
    let size = [LARGE, height.next_multiple_of(32), width.next_multiple_of(32)];
    let load = Load::new(DType::F32, &Device::Cpu);
    let whole = encoded(&*family.video_encoder(&load)?, &Device::Cpu, size, seed)?;
    let tiles = encoded(&*family.video_encoder(&load.with_vae(TILES))?, &Device::Cpu, size, seed)?;
    ensure!(
        tiling.cuts == Cuts::Always || difference(&tiles, &whole)? > 0.0,
        "frames of {size:?} are not cut into tiles"
    );
    compare(folder, name, device, |family, load| {
        let load = load.with_vae(TILES);
        let latents = encoded(&*family.video_encoder(&load)?, &load.device, size, seed)?;
        let frames = decoded(family, &load, size, seed)?;
        Ok(vec![("latents by tiles", latents), ("frames", frames)])
    })
}

/// Compares the embedding of a prompt.
pub fn text(folder: &Path, name: &str, device: &Device) -> anyhow::Result<Vec<Row>> {
    compare(folder, name, device, |family, load| {
        Ok(vec![("prompt", family.embed(load, &[(PROMPT, None)])?.hidden)])
    })
}

/// Compares an image condition: latents, and image tokens.
pub fn image(folder: &Path, name: &str, device: &Device, seed: u64) -> anyhow::Result<Vec<Row>> {
    compare(folder, name, device, |family, load| {
        ensure!(family.spec().image_mode != ImageMode::Never, "it takes no image");
        let (canvas, [_, height, width]) = canvas(family)?;
        // Pictures are read on the CPU.
        let image = smooth([1, height, width], seed, &Device::Cpu)?.squeeze(2)?; // (1, 3, H, W)
        Ok(
            match family.image_condition(load, &image, &canvas, &mut Rng::new(seed))? {
                ImageCondition::First(latents) => vec![("image", latents)],
                ImageCondition::Concat(ConcatCondition { latents, tokens, .. }) => {
                    let tokens = tokens.map(|tokens| ("image tokens", tokens));
                    [("image", latents)].into_iter().chain(tokens).collect()
                }
            },
        )
    })
}

/// Compares a part on `device` in both types with the CPU in f32.
fn compare(
    folder: &Path,
    name: &str,
    device: &Device,
    part: impl Fn(&dyn Family, &Load) -> anyhow::Result<NamedTensors>,
) -> anyhow::Result<Vec<Row>> {
    let on = |dtype: DType, device: &Device| {
        let family = models::open(folder, FamilyName::Auto)?;
        part(&*family, &Load::new(dtype, device))
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
                most: match (dtype, *what) {
                    (DType::F32, _) => MOST,
                    (_, "frames") => MOST_BF16_FRAMES,
                    _ => MOST_BF16,
                },
                attention: attention.clone(),
            });
        }
    }
    Ok(rows)
}

/// Returns latents of a clip, and frames decoded from random latents.
fn there_and_back(family: &dyn Family, load: &Load, seed: u64) -> anyhow::Result<NamedTensors> {
    let (_, size) = canvas(family)?;
    let latents = encoded(&*family.video_encoder(load)?, &load.device, size, seed)?;
    Ok(vec![
        ("latents", latents),
        ("frames", decoded(family, load, size, seed)?),
    ])
}

/// Returns frames decoded from random latents.
fn decoded(family: &dyn Family, load: &Load, [frames, height, width]: [usize; 3], seed: u64) -> anyhow::Result<Tensor> {
    let canvas = family.latent_size(frames, height, width)?;
    let mut rng = Rng::new(seed);
    let drawn = rng.randn(canvas.shape.iter().product());
    let drawn = Tensor::from_vec(drawn, &canvas.shape[..], &load.device)?.to_dtype(family.spec().latent_dtype(load))?;
    let mut decoded = Vec::new();
    family
        .video_decoder(load)?
        .decode(&drawn, &canvas, &mut rng, &mut |frames| {
            decoded.push(frames);
            Ok(())
        })?;
    Ok(Tensor::cat(&decoded, 2)?)
}

/// Returns the latent size of the first size that the checkpoint supports, and that size.
fn canvas(family: &dyn Family) -> anyhow::Result<(LatentSize, [usize; 3])> {
    let of = |size: [usize; 3]| {
        let [frames, height, width] = size;
        Ok((family.latent_size(frames, height, width)?, size))
    };
    SIZES[1..]
        .iter()
        .fold(of(SIZES[0]), |found, size| found.or_else(|_| of(*size)))
}

/// Returns the mean of a clip's posterior.
fn encoded(encoder: &dyn VideoEncoder, device: &Device, size: [usize; 3], seed: u64) -> anyhow::Result<Tensor> {
    Ok(encoder.encode(&smooth(size, seed, device)?)?.mean)
}

/// Clip (1, 3, T, H, W) of -1..1: waves with some noise.
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
