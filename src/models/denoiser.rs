//! What a denoising transformer is to those who run it: a stem, blocks, a head.
//!
//! Inference runs them in order. Training may keep only what each segment receives, and run a segment once more when its
//! gradient is due: a `State` comes apart into the tensors that gradients pass, and is put together again from them.
//!
//! Shapes: B samples, F latent frames, C channels, H and W latent rows and columns, L text tokens, N video tokens, S tokens
//! that the blocks change, D the model's width.

use std::sync::Arc;

use candle_core::{Error, Result, Tensor};

use crate::nn::rope::Rotary;

/// A noisy clip and what the network is told about it.
#[derive(Debug, Clone)]
pub struct Input {
    /// (B, F, C, H, W); image to video: with the image's latents behind the clip's among the channels
    pub latents: Tensor,
    /// (B), of any number type
    pub timestep: Tensor,
    /// (B, L, text width)
    pub text: Tensor,
    /// (1) or (B), for models with `ofs_embed_dim` and only for them; their pipeline gives 2.0
    pub ofs: Option<Tensor>,
}

/// What a segment receives from the one before it.
#[derive(Debug, Clone)]
pub struct State {
    /// The tokens that blocks change, (B, S, D): all parts as one sequence
    pub hidden: Tensor,
    /// The embedded timestep, (B, time width): the stem's, read by all that follow
    pub time: Tensor,
    /// What depends on shapes alone, and has no gradient.
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
}

impl State {
    /// The tensors that gradients pass, in an order that `with_tensors` understands.
    pub fn tensors(&self) -> Vec<Tensor> {
        vec![self.hidden.clone(), self.time.clone()]
    }

    /// The video's tokens, (B, N, D).
    pub fn video(&self) -> Result<Tensor> {
        let count = self.fixed.parts.last().copied().unwrap_or_default();
        self.hidden.narrow(1, self.hidden.dim(1)? - count, count)
    }

    /// This state with other tensors in it: as many, of the same shapes, in the order of `tensors`.
    pub fn with_tensors(&self, tensors: Vec<Tensor>) -> Result<Self> {
        let [hidden, time] = <[Tensor; 2]>::try_from(tensors)
            .map_err(|tensors| Error::Msg(format!("{} tensors for a state of 2", tensors.len())))?;
        let state = Self {
            hidden,
            time,
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

    /// The prediction (B, F, C, H, W).
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
