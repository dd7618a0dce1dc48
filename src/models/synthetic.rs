//! A transformer without the rest of its checkpoint, with random input: for benchmarks and plans.
//!
//! With random weights, nothing but `transformer/config.json` is needed. Compression, frame rate and image tokens are
//! those of the family's published checkpoints.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use candle_core::{DType, Device, Result, Tensor};

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

/// Settings of a transformer that takes random input.
pub struct SyntheticSpec {
    input: InputSpec,
    folder: PathBuf,
    load: LoadCounted,
}

type LoadCounted = fn(&Path, Weights) -> anyhow::Result<Box<dyn CountedDenoiser>>;

/// A denoiser whose operations are counted.
trait CountedDenoiser: Denoiser {
    /// Returns the floating-point operations of one sample, in its blocks, forward.
    fn flops(&self, input: &Input) -> Result<Flops>;
}

impl<N: Network> CountedDenoiser for Transformer<N> {
    fn flops(&self, input: &Input) -> Result<Flops> {
        Self::flops(self, input)
    }
}

/// A transformer that takes random input.
pub struct SyntheticTransformer {
    denoiser: Box<dyn CountedDenoiser>,
    spec: InputSpec,
    device: Device,
}

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
    /// Work of one sample.
    pub work: Flops,
}

/// Random input of a transformer.
pub struct SyntheticInput {
    /// Noise, text and conditions.
    pub input: Input,
    /// Random target in the prediction's shape.
    pub target: Tensor,
}

/// Latent frames of a clip, and the patches of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchGrid {
    /// Latent frames, which fill their patches.
    pub frames: usize,
    /// Latent frames of a patch.
    pub depth: usize,
    /// Rows and columns of patches.
    pub patches: [usize; 2],
}

/// Sizes of random input.
#[derive(Debug, Clone, Copy)]
pub struct SyntheticRequest {
    /// Size of the clips.
    pub grid: PatchGrid,
    /// Number of clips.
    pub batch: usize,
    /// Frames per second of the clips.
    pub frame_rate: f64,
    /// Tokens of a text; None: those of the model's pipeline.
    pub text_tokens: Option<usize>,
}

/// Reads the `config.json` of a transformer in `folder`.
///
/// # Errors
/// Fails for an unreadable config.
pub fn synthetic_spec<N: Network + 'static>(folder: &Path) -> anyhow::Result<SyntheticSpec> {
    Ok(SyntheticSpec {
        input: N::input_spec(&N::Config::load(folder)?),
        folder: folder.to_path_buf(),
        load: |folder, weights| Ok(Box::new(Transformer::<N>::load_from(folder, weights)?)),
    })
}

impl SyntheticSpec {
    /// Returns the patches of a clip.
    ///
    /// # Errors
    /// Fails for a bucket that does not divide into patches.
    pub fn grid(&self, bucket: Bucket, footprint: &Footprint) -> anyhow::Result<PatchGrid> {
        let [frames, height, width] = latent_grid(bucket, footprint, &self.input)?;
        let [depth, rows, columns] = self.input.patch;
        Ok(PatchGrid {
            frames,
            depth,
            patches: [height / rows, width / columns],
        })
    }

    /// Builds the transformer.
    ///
    /// # Errors
    /// Fails for weights that do not fit the config.
    pub fn transformer(&self, weights: Weights) -> anyhow::Result<SyntheticTransformer> {
        let device = weights.device().clone();
        Ok(SyntheticTransformer {
            denoiser: (self.load)(&self.folder, weights)?,
            spec: self.input,
            device,
        })
    }
}

impl SyntheticTransformer {
    /// The transformer.
    pub fn denoiser(&self) -> &dyn Denoiser {
        &*self.denoiser
    }

    /// Returns the floating-point operations of one sample, in its blocks, forward.
    ///
    /// # Errors
    /// Fails for an input of other shapes.
    pub fn flops(&self, input: &Input) -> Result<Flops> {
        self.denoiser.flops(input)
    }

    /// Draws samples of standard normal numbers, in f32, on the weights' device.
    ///
    /// # Errors
    /// Fails where the device has too little memory.
    pub fn draw(&self, request: &SyntheticRequest) -> anyhow::Result<SyntheticInput> {
        let mut rng = Rng::new(0);
        self.filled(request, |count| rng.randn(count))
    }

    /// Returns samples of zeros in the same shapes, for a pass whose numbers nobody reads.
    ///
    /// # Errors
    /// Same as [`draw`](Self::draw).
    pub fn blank(&self, request: &SyntheticRequest) -> anyhow::Result<SyntheticInput> {
        self.filled(request, |count| vec![0.0; count])
    }

    fn filled(
        &self,
        request: &SyntheticRequest,
        numbers: impl FnMut(usize) -> Vec<f32>,
    ) -> anyhow::Result<SyntheticInput> {
        let [_, rows, columns] = self.spec.patch;
        let PatchGrid { frames, patches, .. } = request.grid;
        let grid = [frames, patches[0] * rows, patches[1] * columns];
        let (input, target) = filled_input(&self.spec, request, (grid, &self.device), numbers)?;
        Ok(SyntheticInput { input, target })
    }

    /// Returns the transformer with random input.
    ///
    /// # Errors
    /// Same as [`draw`](Self::draw).
    pub fn batch(self, request: &SyntheticRequest) -> anyhow::Result<SyntheticBatch> {
        let SyntheticInput { input, target } = self.draw(request)?;
        Ok(SyntheticBatch {
            tokens: self.denoiser.embed(&input)?.hidden.dim(1)?,
            work: self.denoiser.flops(&input)?,
            denoiser: self.denoiser,
            input,
            target,
        })
    }
}

/// Fills an input, and a target, for a grid of latents and a device with numbers.
fn filled_input(
    spec: &InputSpec,
    request: &SyntheticRequest,
    (grid, device): ([usize; 3], &Device),
    mut numbers: impl FnMut(usize) -> Vec<f32>,
) -> anyhow::Result<(Input, Tensor)> {
    let batch = request.batch;
    let text_tokens = request.text_tokens.unwrap_or(spec.text.tokens);
    let mut draw = |shape: &[usize]| {
        let shape = [&[batch], shape].concat();
        Tensor::from_vec(numbers(shape.iter().product()), shape, device)
    };
    let latents = draw(&latent_shape(spec.layout, spec.channels, grid))?;
    let mask = Tensor::ones((batch, text_tokens), DType::F32, device);
    let text = TextEmbeds {
        mask: spec.text.masked.then_some(mask).transpose()?,
        pooled: spec.text.pooled.map(|width| draw(&[width])).transpose()?,
        ..draw(&[text_tokens, spec.text.width])?.into()
    };
    let text = text.trimmed()?;
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
