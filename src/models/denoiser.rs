//! What a denoising transformer is to those who run it: a stem, blocks, a head.
//!
//! Inference runs them in order. Training may keep only what each segment receives, and run a segment once more when its
//! gradient is due: a `State` comes apart into the tensors that gradients pass, and is put together again from them.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, L text tokens, N video tokens, S tokens
//! that the blocks change, D the model's width, T the time's.

use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Tensor};

use crate::nn::rope::Rotary;

/// A noisy clip and what the network is told about it.
#[derive(Debug, Clone)]
pub struct Input {
    /// In the order that the family's pipeline draws noise in: (B, F, C, H, W) or (B, C, F, H, W). Image to video by
    /// channels: with what the image says behind the clip's channels.
    pub latents: Tensor,
    /// (B), of any number type; (B, F) where frames may differ in their noise
    pub timestep: Tensor,
    pub text: Text,
    /// What an image encoder says of the image to start from, (B, tokens, width), for models that attend to it
    pub image: Option<Tensor>,
    /// (1) or (B), for models with `ofs_embed_dim` and only for them; their pipeline gives 2.0
    pub ofs: Option<Tensor>,
    /// Of the clips, B of them, for models whose positions count seconds.
    pub frame_rates: Option<Vec<f64>>,
}

impl Input {
    /// With text alone.
    pub fn new(latents: Tensor, timestep: Tensor, text: impl Into<Text>) -> Self {
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

/// Prompts, encoded.
#[derive(Debug, Clone)]
pub struct Text {
    /// (B, L, text width)
    pub hidden: Tensor,
    /// 1 for a prompt's own tokens, 0 for padding that must not be attended to, (B, L) in f32; none where padding counts
    pub mask: Option<Tensor>,
}

impl From<Tensor> for Text {
    /// Prompts (B, L, text width) whose padding counts.
    fn from(hidden: Tensor) -> Self {
        Self { hidden, mask: None }
    }
}

impl Text {
    /// Both tensors, for those who keep them; `stack` takes them back.
    pub fn tensors(&self) -> Vec<&Tensor> {
        [Some(&self.hidden), self.mask.as_ref()].into_iter().flatten().collect()
    }

    /// Several prompts as one batch, each kept as (L, text width) and, where there is a mask, (L) of any type.
    ///
    /// # Errors
    /// Prompts of other than one or two tensors, or some with a mask and some without.
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

    /// Several prompts as one batch.
    pub fn cat(texts: &[Self]) -> Result<Self> {
        let join = |parts: Vec<&Tensor>| Tensor::cat(&parts, 0);
        let masks: Vec<&Tensor> = texts.iter().filter_map(|text| text.mask.as_ref()).collect();
        Ok(Self {
            hidden: join(texts.iter().map(|text| &text.hidden).collect())?,
            mask: (!masks.is_empty()).then(|| join(masks)).transpose()?,
        })
    }

    /// The prompts from `start` on, `len` of them.
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        self.map(|tensor| tensor.narrow(0, start, len))
    }

    /// How many prompts there are.
    pub fn count(&self) -> Result<usize> {
        self.hidden.dim(0)
    }

    pub fn to_device(&self, device: &Device) -> Result<Self> {
        self.map(|tensor| tensor.to_device(device))
    }

    /// With the prompts, but not the mask, in this type.
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

/// What a segment receives from the one before it. A family fills what its blocks read.
#[derive(Debug, Clone)]
pub struct State {
    /// The tokens that blocks change, (B, S, D): all parts as one sequence
    pub hidden: Tensor,
    /// The embedded timestep, (B, T); (B, 1 or F, T) where there is `modulation`: the stem's, read by all that follow
    pub time: Tensor,
    /// Shifts, scales and gates that all blocks start from, where the stem makes them: (B, 1 or F, k, D)
    pub modulation: Option<Tensor>,
    /// What blocks attend to across: the embedded text, (B, L, D)
    pub text: Option<Tensor>,
    /// The same of an image, (B, tokens, D)
    pub image: Option<Tensor>,
    /// What depends on shapes and masks alone, and has no gradient.
    pub fixed: Arc<Fixed>,
}

/// The part of a state that no segment changes and no gradient passes.
#[derive(Debug, Clone)]
pub struct Fixed {
    /// Tokens of the clip: frames, rows, columns; N is their product.
    pub grid: [usize; 3],
    /// Tokens of each part of the sequence, one part behind the other: the video's come last, behind the text's where
    /// blocks attend to both together. Their sum is S.
    pub parts: Vec<usize>,
    /// How queries and keys of the sequence turn, where they do.
    pub rotary: Option<Rotary>,
    /// Which text tokens may be attended to across, (B, L) of 1 and 0 in f32; none for all.
    pub text_mask: Option<Tensor>,
}

impl Fixed {
    /// Of a sequence that is the clip alone, attending across to the text.
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
    /// The tensors that gradients pass, in an order that `with_tensors` understands.
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

    /// The video's tokens, (B, N, D).
    pub fn video(&self) -> Result<Tensor> {
        let count = self.fixed.parts.last().copied().unwrap_or_default();
        self.hidden.narrow(1, self.hidden.dim(1)? - count, count)
    }

    /// Tokens of each part of the video that has a timestep of its own: all of it, or every frame.
    pub fn timed_parts(&self) -> Result<Vec<usize>> {
        let count = self.time.dim(1)?;
        Ok(vec![self.fixed.grid.iter().product::<usize>() / count.max(1); count])
    }

    /// This state with other tensors in it: as many, of the same shapes, in the order of `tensors`.
    pub fn with_tensors(&self, tensors: Vec<Tensor>) -> Result<Self> {
        let (given, needed) = (tensors.len(), self.tensors().len());
        if given != needed {
            return Err(Error::Msg(format!("{given} tensors for a state of {needed}")));
        }
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().expect("they were counted");
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

/// A denoising transformer as a list of segments.
pub trait Denoiser: Send + Sync {
    /// Embeds patches, text, time and positions.
    fn stem(&self, input: &Input) -> Result<State>;

    /// How many blocks stand between stem and head.
    fn num_blocks(&self) -> usize;

    /// Runs block `index`, which is below `num_blocks`.
    fn block(&self, index: usize, state: &State) -> Result<State>;

    /// The prediction, in the order of the input's latents.
    fn head(&self, state: &State) -> Result<Tensor>;

    /// All segments in order.
    fn forward(&self, input: &Input) -> Result<Tensor> {
        let mut state = self.stem(input)?;
        for index in 0..self.num_blocks() {
            state = self.block(index, &state)?;
        }
        self.head(&state)
    }
}
