//! A transformer without the rest of its checkpoint, with random input: for benchmarks.
//!
//! With random weights, nothing but `transformer/config.json` is needed. Compression, frame rate and image tokens are
//! those of the family's published checkpoints.

use std::path::Path;

use anyhow::ensure;
use candle_core::{DType, Device, Tensor};

use super::denoiser::{Denoiser, Input, Scalar, Scalars};
use super::footprint::Footprint;
use super::input_spec::InputSpec;
use super::latent_size::Layout;
use super::text_embeds::TextEmbeds;
use super::transformer::{Network, Transformer};
use crate::data::Bucket;
use crate::diffusers_config::Config as _;
use crate::nn::Weights;
use crate::nn::flops::Flops;
use crate::rng::Rng;

/// Timestep of every sample: one in the middle.
const TIMESTEP: f32 = 500.0;

/// Tokens of an image where the transformer takes any number of them: of CLIP's ViT-H at 224 pixels.
const IMAGE_TOKENS: usize = 257;

/// Value of `ofs` in the pipeline that passes it.
const OFS: f64 = 2.0;

/// Guidance scale that is trained with.
const GUIDANCE: f64 = 1.0;

/// A transformer, with random input in the shapes of training.
pub struct SyntheticBatch {
    /// The transformer.
    pub denoiser: Box<dyn Denoiser>,
    /// Noise, text and conditions as input.
    pub input: Input,
    /// Random target in the prediction's shape.
    pub target: Tensor,
    /// Tokens that the blocks change, of one sample.
    pub tokens: usize,
    /// Rows and columns of patches in the bucket.
    pub patches: [usize; 2],
    /// Work of one sample.
    pub work: Flops,
    /// The same for fewer tokens, if they were asked for.
    pub fewer: Option<SyntheticInput>,
}

/// Random input of a transformer.
pub struct SyntheticInput {
    /// Noise, text and conditions.
    pub input: Input,
    /// Random target in the prediction's shape.
    pub target: Tensor,
    /// Work of one sample.
    pub work: Flops,
}

/// Numbers of tokens, in place of others.
#[derive(Debug, Clone, Copy)]
pub struct Tokens {
    /// Rows and columns of patches.
    pub patches: [usize; 2],
    /// Tokens of a text.
    pub text: usize,
}

/// Weights and sizes of a synthetic batch.
pub struct SyntheticRequest {
    /// Weights of the transformer.
    pub weights: Weights,
    /// Size of the clips.
    pub bucket: Bucket,
    /// Number of clips.
    pub batch: usize,
    /// Sizes of the family's encodings.
    pub footprint: Footprint,
    /// Frames per second of the clips.
    pub frame_rate: f64,
    /// Rows and columns of patches, in place of the bucket's.
    pub patches: Option<[usize; 2]>,
    /// Tokens of a text; None: those of the model's pipeline.
    pub text_tokens: Option<usize>,
    /// Tokens of a second input.
    pub fewer: Option<Tokens>,
}

/// Builds the transformer whose `config.json` is in `folder`, and draws samples of standard normal numbers, in f32, on the
/// weights' device.
///
/// # Errors
/// Fails for an unreadable config, weights that do not fit it, and a bucket that does not divide into patches.
pub fn synthetic_batch<N: Network + 'static>(
    folder: &Path,
    request: SyntheticRequest,
) -> anyhow::Result<SyntheticBatch> {
    let spec = N::input_spec(&N::Config::load(folder)?);
    let mut grid = latent_grid(request.bucket, &request.footprint, &spec)?;
    let [_, rows, columns] = spec.patch;
    let patches = [grid[1] / rows, grid[2] / columns];
    if let Some(patches) = request.patches {
        grid = [grid[0], patches[0] * rows, patches[1] * columns];
    }
    let (mut rng, device) = (Rng::new(0), request.weights.device().clone());
    let text_tokens = request.text_tokens.unwrap_or(spec.text.tokens);
    let (input, target) = draw_input(&spec, &request, (grid, text_tokens, &device), &mut rng)?;
    let fewer = request.fewer.map(|Tokens { patches, text }| {
        let grid = [grid[0], patches[0] * rows, patches[1] * columns];
        draw_input(&spec, &request, (grid, text, &device), &mut rng)
    });
    let fewer = fewer.transpose()?;
    let denoiser = Transformer::<N>::load_from(folder, request.weights)?;
    let fewer = fewer.map(|(input, target)| {
        let work = denoiser.flops(&input)?;
        anyhow::Ok(SyntheticInput { input, target, work })
    });
    Ok(SyntheticBatch {
        patches,
        tokens: denoiser.embed(&input)?.hidden.dim(1)?,
        work: denoiser.flops(&input)?,
        fewer: fewer.transpose()?,
        denoiser: Box::new(denoiser),
        input,
        target,
    })
}

/// Draws an input, and a target, for a grid of latents, so many tokens of text, and a device.
fn draw_input(
    spec: &InputSpec,
    request: &SyntheticRequest,
    (grid, text_tokens, device): ([usize; 3], usize, &Device),
    rng: &mut Rng,
) -> anyhow::Result<(Input, Tensor)> {
    let batch = request.batch;
    let mut draw = |shape: &[usize]| {
        let shape = [&[batch], shape].concat();
        Tensor::from_vec(rng.randn(shape.iter().product()), shape, device)
    };
    let latents = draw(&latent_shape(spec.layout, spec.channels, grid))?;
    let mask = Tensor::ones((batch, text_tokens), DType::F32, device);
    let text = TextEmbeds {
        mask: spec.text.masked.then_some(mask).transpose()?,
        pooled: spec.text.pooled.map(|width| draw(&[width])).transpose()?,
        ..draw(&[text_tokens, spec.text.width])?.into()
    };
    let image = spec
        .image
        .map(|image| [image.tokens.unwrap_or(IMAGE_TOKENS), image.width]);
    let scalars = spec.scalars.iter().fold(Scalars::default(), |all, scalar| {
        let value = match scalar {
            Scalar::FrameRate => request.frame_rate,
            Scalar::Ofs => OFS,
            Scalar::Guidance => GUIDANCE,
        };
        all.and(&Scalars::of(*scalar, vec![value; batch]))
    });
    let input = Input {
        image: image.map(|image| draw(&image)).transpose()?,
        scalars,
        ..Input::new(latents, Tensor::from_vec(vec![TIMESTEP; batch], batch, device)?, text)
    };
    let target = draw(&latent_shape(spec.layout, spec.out_channels, grid))?;
    Ok((input, target))
}

/// Returns the latent frames, rows and columns of a bucket; frames fill their patches.
fn latent_grid(bucket: Bucket, footprint: &Footprint, spec: &InputSpec) -> anyhow::Result<[usize; 3]> {
    let [time, space] = footprint.compression();
    let [depth, rows, columns] = spec.patch;
    let [step_rows, step_columns] = [rows, columns].map(|patch| space.saturating_mul(patch));
    ensure!(
        bucket.height.is_multiple_of(step_rows) && bucket.width.is_multiple_of(step_columns),
        "the bucket {bucket}: height and width must be multiples of {step_rows} and {step_columns}"
    );
    let frames = (bucket.frames.saturating_sub(1) / time + 1).next_multiple_of(depth);
    Ok([frames, bucket.height / space, bucket.width / space])
}

/// Returns the shape of one sample's latents in the network's layout.
fn latent_shape(layout: Layout, channels: usize, [frames, height, width]: [usize; 3]) -> [usize; 4] {
    match layout {
        Layout::FramesFirst => [frames, channels, height, width],
        Layout::ChannelsFirst => [channels, frames, height, width],
    }
}
