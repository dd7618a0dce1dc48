//! Memory of a video autoencoder: its encoder on a clip, its decoder on a clip's latents.
//!
//! Each half runs as an outline on small clips of two heights and two widths. The peak grows with the rows and with the columns,
//! since every tensor does, so that the four peaks give that of any height and width. It also grows with each frame beyond
//! those of a piece by as much.

use anyhow::Context;
use candle_core::{DType, Device, Tensor};

use super::timeline::{Place, Timeline};
use crate::data::Bucket;
use crate::models::Family;
use crate::nn::Load;
use crate::nn::load::Content;
use crate::nn::vae_memory::VaeMemory;
use crate::process::allocations::{self, Entry};
use crate::rng::Rng;

/// Frames of the small clips.
const FRAMES: [usize; 2] = [17, 25];

/// Latent rows, and columns, of the small clips.
const SIDES: [usize; 2] = [2, 4];

/// Type that autoencoders compute in on the CPU.
const ON_CPU: DType = DType::F32;

/// Half of an autoencoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Clips to latents.
    Encoder,
    /// Latents to clips.
    Decoder,
}

/// Returns the peak of a half's tensors while it codes one clip, with the clip, without weights.
///
/// # Errors
/// Those of the autoencoder's files.
pub fn coding(family: &dyn Family, load: &Load, bucket: Bucket, half: Half, place: Place) -> anyhow::Result<u64> {
    let load = Load {
        content: Content::Outlines,
        device: Device::Cpu,
        vae: VaeMemory::WHOLE,
        ..load.clone()
    };
    let coder = Coder::load(family, &load, half)?;
    let peak = |frames| peak(&coder, Bucket { frames, ..bucket }, place);
    if bucket.frames <= FRAMES[1] {
        return Ok(peak(bucket.frames)? as u64);
    }
    let [short, long] = [peak(FRAMES[0])?, peak(FRAMES[1])?];
    let each = (long - short) / (FRAMES[1] - FRAMES[0]) as f64;
    Ok((long + each * (bucket.frames - FRAMES[1]) as f64) as u64)
}

/// A half that runs as an outline.
enum Coder<'a> {
    Encoder(Box<dyn crate::models::family::VideoEncoder>, usize),
    Decoder(Box<dyn crate::models::family::VideoDecoder>, &'a dyn Family, usize),
}

impl<'a> Coder<'a> {
    fn load(family: &'a dyn Family, load: &Load, half: Half) -> anyhow::Result<Self> {
        let side = family.spec().footprint.spatial_compression;
        Ok(match half {
            Half::Encoder => Self::Encoder(family.video_encoder(load)?, side),
            Half::Decoder => Self::Decoder(family.video_decoder(load)?, family, side),
        })
    }

    /// Pixels per latent row, and per column.
    fn side(&self) -> usize {
        match self {
            Self::Encoder(_, side) | Self::Decoder(_, _, side) => *side,
        }
    }

    /// Records the coding of a clip of so many latent rows and columns; the clip is counted.
    fn run(&self, bucket: Bucket, [rows, columns]: [usize; 2]) -> anyhow::Result<Vec<Entry>> {
        let side = self.side();
        let (done, entries) = match self {
            Self::Encoder(encoder, _) => allocations::record(|| {
                let clip = (1, 3, bucket.frames, rows * side, columns * side);
                encoder.encode(&Tensor::zeros(clip, ON_CPU, &Device::Cpu)?).map(drop)
            }),
            Self::Decoder(decoder, family, _) => {
                let mut size = family.latent_size(bucket.frames, bucket.height, bucket.width)?;
                (size.shape[3], size.shape[4]) = (rows, columns);
                let latents = Tensor::zeros(&size.shape, ON_CPU, &Device::Cpu)?;
                allocations::record(|| {
                    let mut rng = Rng::new(0);
                    decoder.decode(&latents, &size, &mut rng, &mut |frames| {
                        drop(frames);
                        Ok(())
                    })
                })
            }
        };
        done.context("the plan of the autoencoder")?;
        Ok(entries)
    }
}

/// Returns the peak at the bucket's height and width.
fn peak(coder: &Coder, bucket: Bucket, place: Place) -> anyhow::Result<f64> {
    let side = coder.side().max(1);
    let along = |pixels: usize| (pixels as f64 / side as f64 - SIDES[0] as f64) / (SIDES[1] - SIDES[0]) as f64;
    let [rows, columns] = [bucket.height, bucket.width].map(along);
    let weights = [
        (1.0 - rows) * (1.0 - columns),
        rows * (1.0 - columns),
        (1.0 - rows) * columns,
        rows * columns,
    ];
    let [few, many] = SIDES;
    let sizes = [[few, few], [many, few], [few, many], [many, many]];
    let mut sum = 0.0;
    for (size, weight) in sizes.into_iter().zip(weights) {
        let record = coder.run(bucket, size)?;
        sum += weight * Timeline::new(&[(&record, 1.0)], place)?.level().peak;
    }
    Ok(sum)
}
