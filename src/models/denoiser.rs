//! Interface of denoising transformers: embedding, blocks, head.
//!
//! Inference runs them in order. Training may keep only what each segment receives, and run a segment again when its
//! gradient is needed: a `State` splits into the tensors that gradients pass through, and is rebuilt from them.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, L text tokens, N video tokens, S
//! tokens that the blocks change, D the model's width, T the time's.

use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Tensor};

use crate::nn::rope::Rotary;

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
    /// `ofs` (1) or (B), only for models with `ofs_embed_dim`; their pipeline passes 2.0
    pub ofs: Option<Tensor>,
    /// Frame rates of the B clips, for models whose positions count seconds.
    pub frame_rates: Option<Vec<f64>>,
}

impl Input {
    /// Input with text alone.
    pub fn new(latents: Tensor, timestep: Tensor, text: impl Into<TextEmbeds>) -> Self {
        Self {
            latents,
            timestep,
            text: text.into(),
            image: None,
            ofs: None,
            frame_rates: None,
        }
    }
}

/// Encoded prompts.
#[derive(Debug, Clone)]
pub struct TextEmbeds {
    /// Embeddings (B, L, text width)
    pub hidden: Tensor,
    /// 1 for a prompt's own tokens, 0 for padding that must not be attended to, (B, L) in f32; None if padding counts
    pub mask: Option<Tensor>,
}

impl From<Tensor> for TextEmbeds {
    /// Prompts (B, L, text width) whose padding counts.
    fn from(hidden: Tensor) -> Self {
        Self { hidden, mask: None }
    }
}

impl TextEmbeds {
    /// Returns the tensors for storage; the inverse of `stack`.
    pub fn tensors(&self) -> Vec<&Tensor> {
        [Some(&self.hidden), self.mask.as_ref()].into_iter().flatten().collect()
    }

    /// Stacks prompts to a batch, each stored as (L, text width) and, if masked, (L) of any type.
    ///
    /// # Errors
    /// Fails for prompts of other than one or two tensors, or if only some have a mask.
    pub fn stack(prompts: &[Vec<Tensor>]) -> Result<Self> {
        let count = prompts.first().map_or(0, Vec::len);
        if !(1..=2).contains(&count) || prompts.iter().any(|prompt| prompt.len() != count) {
            let counts: Vec<usize> = prompts.iter().map(Vec::len).collect();
            return Err(Error::Msg(format!("{counts:?} tensors for encoded prompts")));
        }
        let part = |index: usize| {
            let parts: Vec<&Tensor> = prompts.iter().map(|prompt| &prompt[index]).collect();
            Tensor::stack(&parts, 0)
        };
        Ok(Self {
            hidden: part(0)?,
            mask: (count == 2).then(|| part(1)?.to_dtype(DType::F32)).transpose()?,
        })
    }

    /// Concatenates prompts to a batch.
    pub fn cat(texts: &[Self]) -> Result<Self> {
        let join = |parts: Vec<&Tensor>| Tensor::cat(&parts, 0);
        let masks: Vec<&Tensor> = texts.iter().filter_map(|text| text.mask.as_ref()).collect();
        Ok(Self {
            hidden: join(texts.iter().map(|text| &text.hidden).collect())?,
            mask: (!masks.is_empty()).then(|| join(masks)).transpose()?,
        })
    }

    /// Returns `len` prompts from `start` on.
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        self.map(|tensor| tensor.narrow(0, start, len))
    }

    /// Returns the number of prompts.
    pub fn count(&self) -> Result<usize> {
        self.hidden.dim(0)
    }

    /// Moves the tensors to another device.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        self.map(|tensor| tensor.to_device(device))
    }

    /// Converts the prompts, but not the mask, to this type.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        Ok(Self {
            hidden: self.hidden.to_dtype(dtype)?,
            mask: self.mask.clone(),
        })
    }

    fn map(&self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            hidden: change(&self.hidden)?,
            mask: self.mask.as_ref().map(change).transpose()?,
        })
    }
}

/// State between segments. A family fills what its blocks read.
#[derive(Debug, Clone)]
pub struct State {
    /// Tokens that blocks change, (B, S, D): all parts as one sequence
    pub hidden: Tensor,
    /// Embedded timestep, (B, T); (B, 1 or F, T) with `modulation`: from the embedding, read by all later segments
    pub time: Tensor,
    /// Shifts, scales and gates that all blocks start from, if the embedding computes them: (B, 1 or F, k, D)
    pub modulation: Option<Tensor>,
    /// Context of cross-attention: the embedded text, (B, L, D)
    pub text: Option<Tensor>,
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
}

impl State {
    /// Returns the tensors that have gradients, in the order of `with_tensors`.
    pub fn tensors(&self) -> Vec<Tensor> {
        let Self {
            hidden,
            time,
            modulation,
            text,
            image,
            ..
        } = self;
        let optional = [modulation, text, image].into_iter().flatten();
        [hidden, time].into_iter().chain(optional).cloned().collect()
    }

    /// Returns the video's tokens, (B, N, D).
    pub fn video(&self) -> Result<Tensor> {
        let count = self.fixed.parts.last().copied().unwrap_or_default();
        self.hidden.narrow(1, self.hidden.dim(1)? - count, count)
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
            text: self.text.as_ref().map(|_| next()),
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

    /// Runs all segments in order.
    fn forward(&self, input: &Input) -> Result<Tensor> {
        let mut state = self.embed(input)?;
        for index in 0..self.num_blocks() {
            state = self.block(index, &state)?;
        }
        self.head(&state)
    }
}
