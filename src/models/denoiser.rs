//! Interface of denoising transformers: embedding, blocks, head.
//!
//! Inference runs them in order. Training may keep only what each segment receives, and run a segment again when its
//! gradient is needed: a `State` splits into the tensors that gradients pass through, and is rebuilt from them.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, L text tokens, N video tokens, S
//! tokens that the blocks change, D the model's width, T the time's.

use std::sync::Arc;

use candle_core::{Error, Result, Tensor};

pub use super::text_embeds::TextEmbeds;

use crate::nn::rope::Rotary;

/// Bias on the score of a masked text token.
const MASKED: f64 = -10_000.0;

/// A noisy clip and its conditions.
#[derive(Debug, Clone)]
pub struct Input {
    /// Latents in the order in which the family's pipeline draws noise: (B, F, C, H, W) or (B, C, F, H, W). For
    /// image-to-video by channels, the image's channels come after the clip's.
    pub latents: Tensor,
    /// Timesteps (B), of any number type; (B, F) if frames may differ in their noise
    pub timestep: Tensor,
    /// Encoded prompts.
    pub text: TextEmbeds,
    /// Image embedding (B, tokens, width), for models that attend to it
    pub image: Option<Tensor>,
    /// Other numbers, for models that take some.
    pub scalars: Scalars,
}

impl Input {
    /// Input with text alone.
    pub fn new(latents: Tensor, timestep: Tensor, text: impl Into<TextEmbeds>) -> Self {
        Self {
            latents,
            timestep,
            text: text.into(),
            image: None,
            scalars: Scalars::default(),
        }
    }
}

/// Kinds of numbers that some networks take besides timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    /// Frames per second, where positions count seconds.
    FrameRate,
    /// `ofs` of CogVideoX 1.5; its image-to-video pipeline passes 2.0.
    Ofs,
    /// Guidance scale that a model was distilled to know.
    Guidance,
}

/// Numbers of the samples of a batch: one for each, or one for all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scalars(Vec<(Scalar, Vec<f64>)>);

impl Scalars {
    /// Numbers of one kind.
    pub fn of(scalar: Scalar, values: Vec<f64>) -> Self {
        Self(vec![(scalar, values)])
    }

    /// Returns the numbers of a kind.
    pub fn get(&self, scalar: Scalar) -> Option<&[f64]> {
        let found = self.0.iter().find(|(kind, _)| *kind == scalar);
        found.map(|(_, values)| values.as_slice())
    }

    /// Returns these numbers and others.
    pub fn and(&self, others: &Self) -> Self {
        Self([&self.0[..], &others.0].concat())
    }
}

/// State between segments. A family fills what its blocks read; a block may change any tensor of it.
#[derive(Debug, Clone)]
pub struct State {
    /// Tokens of the clip, or of text and clip as one sequence, (B, S, D)
    pub hidden: Tensor,
    /// Embedded timestep, (B, T); (B, 1 or F, T) with `modulation`: from the embedding, read by all later segments
    pub time: Tensor,
    /// Shifts, scales and gates that all blocks start from, if the embedding computes them: (B, 1 or F, k, D)
    pub modulation: Option<Tensor>,
    /// Embedded text outside of that sequence: the context of cross-attention, or a second stream that blocks change
    /// as well, (B, L, width)
    pub context: Option<Tensor>,
    /// Embedded image for cross-attention, (B, tokens, D)
    pub image: Option<Tensor>,
    /// Part that depends on shapes and masks alone, without gradients.
    pub fixed: Arc<StaticContext>,
}

/// Part of a state that no segment changes and that has no gradient.
#[derive(Debug, Clone)]
pub struct StaticContext {
    /// Tokens of the clip: frames, rows, columns; N is their product.
    pub grid: [usize; 3],
    /// Tokens of each consecutive part of the sequence: the video's come last, after the text's in joint attention.
    /// Their sum is S.
    pub parts: Vec<usize>,
    /// Rotation of queries and keys, if any.
    pub rotary: Option<Rotary>,
    /// Mask of text tokens in cross-attention, (B, L) of 1 and 0 in f32; None for all.
    pub text_mask: Option<Tensor>,
}

impl StaticContext {
    /// Context of a sequence that is the clip alone, with cross-attention to the text.
    pub fn of_clip(grid: [usize; 3], rotary: Rotary, text_mask: Option<Tensor>) -> Self {
        Self {
            grid,
            parts: vec![grid.iter().product()],
            rotary: Some(rotary),
            text_mask,
        }
    }

    /// Returns what the scores of cross-attention get for a masked text, 0 or -10000: (B, 1, 1, L).
    pub fn text_bias(&self) -> Result<Option<Tensor>> {
        let bias = |mask: &Tensor| mask.affine(-MASKED, MASKED)?.unsqueeze(1)?.unsqueeze(1);
        self.text_mask.as_ref().map(bias).transpose()
    }
}

impl State {
    /// Returns the tensors that have gradients, in the order of `with_tensors`.
    pub fn tensors(&self) -> Vec<Tensor> {
        let Self {
            hidden,
            time,
            modulation,
            context,
            image,
            ..
        } = self;
        let optional = [modulation, context, image].into_iter().flatten();
        [hidden, time].into_iter().chain(optional).cloned().collect()
    }

    /// Returns the video's tokens, (B, N, D).
    pub fn video(&self) -> Result<Tensor> {
        let count = self.fixed.parts.last().copied().unwrap_or_default();
        self.hidden.narrow(1, self.hidden.dim(1)? - count, count)
    }

    /// Returns the tokens of the clip, which come last in the sequence: (B, N, D).
    pub fn clip(&self) -> Result<Tensor> {
        let count = self.fixed.grid.iter().product();
        self.hidden.narrow(1, self.hidden.dim(1)? - count, count)
    }

    /// Returns this state with other tokens of the clip.
    pub fn with_clip(&self, clip: Tensor) -> Result<Self> {
        let before = self.hidden.dim(1)? - clip.dim(1)?;
        let hidden = match before {
            0 => clip,
            _ => Tensor::cat(&[&self.hidden.narrow(1, 0, before)?, &clip], 1)?,
        };
        Ok(Self { hidden, ..self.clone() })
    }

    /// Returns the tokens of each part of the video with its own timestep: all of it, or every frame.
    pub fn timed_parts(&self) -> Result<Vec<usize>> {
        let count = self.time.dim(1)?;
        Ok(vec![self.fixed.grid.iter().product::<usize>() / count.max(1); count])
    }

    /// Returns this state with other tensors: as many, of the same shapes, in the order of `tensors`.
    pub fn with_tensors(&self, tensors: Vec<Tensor>) -> Result<Self> {
        let (given, needed) = (tensors.len(), self.tensors().len());
        if given != needed {
            return Err(Error::Msg(format!("{given} tensors for a state of {needed}")));
        }
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().expect("the number was checked");
        let state = Self {
            hidden: next(),
            time: next(),
            modulation: self.modulation.as_ref().map(|_| next()),
            context: self.context.as_ref().map(|_| next()),
            image: self.image.as_ref().map(|_| next()),
            fixed: self.fixed.clone(),
        };
        for (old, new) in self.tensors().iter().zip(state.tensors()) {
            if old.shape() != new.shape() {
                return Err(Error::Msg(format!(
                    "a tensor of shape {:?} for one of {:?}",
                    new.dims(),
                    old.dims()
                )));
            }
        }
        Ok(state)
    }
}

/// Denoising transformer as a list of segments.
pub trait Denoiser: Send + Sync {
    /// Embeds patches, text, time and positions.
    fn embed(&self, input: &Input) -> Result<State>;

    /// Returns the number of blocks between embedding and head.
    fn num_blocks(&self) -> usize;

    /// Runs block `index`, which is below `num_blocks`.
    fn block(&self, index: usize, state: &State) -> Result<State>;

    /// Returns the prediction, in the order of the input's latents.
    fn head(&self, state: &State) -> Result<Tensor>;

    /// Lets go of frozen weights that can be brought again, until they are needed.
    ///
    /// # Errors
    /// Fails if weights on their way do not come.
    fn release(&self) -> Result<()> {
        Ok(())
    }

    /// Runs all segments in order.
    fn forward(&self, input: &Input) -> Result<Tensor> {
        let mut state = self.embed(input)?;
        for index in 0..self.num_blocks() {
            state = self.block(index, &state)?;
        }
        self.head(&state)
    }
}
