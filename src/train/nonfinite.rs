//! Finds the origin of a non-finite loss or gradient.
//!
//! Only a failed step is examined, so good steps have no extra cost. The inputs and outputs of a pass are checked in
//! order, and the first that holds NaN or an infinity is the origin: adapters, then the input, then embedding, blocks
//! and head; in the backward pass the gradients, from the last layer to the first.

use candle_core::{Result, Tensor};

use crate::finite;
use crate::models::denoiser::{Denoiser, Input};
use crate::ops::tape::no_grad;

/// The first non-finite value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NonfiniteOrigin {
    /// An adapter, by the index of its variable.
    Adapter(usize),
    /// An input of the network.
    Input(&'static str),
    /// The embedding of the input.
    Stem,
    /// A block: its index, and the number of blocks.
    Block(usize, usize),
    /// The layers after the blocks.
    Head,
    /// The loss alone: the prediction is finite, but too far from its target.
    Loss,
    /// A gradient, by the index of its variable: the losses are finite.
    Gradient(usize),
    /// The norm of all gradients, each of which is finite.
    Norm,
}

impl NonfiniteOrigin {
    /// Returns true if every later step will fail as well.
    pub fn stays(&self) -> bool {
        matches!(self, Self::Adapter(_))
    }

    /// Returns true if the frozen weights may be the cause.
    pub fn is_network(&self) -> bool {
        matches!(self, Self::Stem | Self::Block(..) | Self::Head)
    }

    /// Examines a pass over `input` whose loss is not finite.
    pub fn of_loss(denoiser: &dyn Denoiser, input: &Input) -> Result<Self> {
        if let Some(part) = bad_input(input)? {
            return Ok(Self::Input(part));
        }
        let mut state = no_grad(|| denoiser.embed(input))?;
        if bad(&state.tensors())? {
            return Ok(Self::Stem);
        }
        let count = denoiser.num_blocks();
        for index in 0..count {
            state = no_grad(|| denoiser.block(index, &state))?;
            if bad(&state.tensors())? {
                return Ok(Self::Block(index, count));
            }
        }
        match bad(&[no_grad(|| denoiser.head(&state))?])? {
            true => Ok(Self::Head),
            false => Ok(Self::Loss),
        }
    }

    /// Examines gradients whose norm is not finite, in the order of the layers.
    pub fn of_gradients(gradients: &[Tensor]) -> Result<Self> {
        let found = last(gradients)?;
        Ok(found.map_or(Self::Norm, Self::Gradient))
    }

    /// Describes the origin; `adapter` names a variable.
    pub fn in_words(&self, adapter: impl Fn(usize) -> String) -> String {
        match self {
            Self::Adapter(place) => format!("the adapters are not finite any more, first {}", adapter(*place)),
            Self::Input(part) => format!("{part} are not finite"),
            Self::Stem => "it begins in the embedding of the input, before the first block".into(),
            Self::Block(index, count) => format!("it begins in block {index} (of 0 to {})", count - 1),
            Self::Head => "it begins after the last block".into(),
            Self::Loss => "the prediction is finite, but its error is not".into(),
            Self::Gradient(place) => format!("in the backward pass it begins in the gradient of {}", adapter(*place)),
            Self::Norm => "every gradient is finite, but their norm is not".into(),
        }
    }
}

/// Returns the index of the first non-finite tensor.
pub fn first<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Option<usize>> {
    for (place, tensor) in tensors.into_iter().enumerate() {
        if finite::first(tensor)?.is_some() {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

fn last(tensors: &[Tensor]) -> Result<Option<usize>> {
    let from_the_end = first(tensors.iter().rev())?;
    Ok(from_the_end.map(|place| tensors.len() - 1 - place))
}

fn bad(tensors: &[Tensor]) -> Result<bool> {
    Ok(first(tensors)?.is_some())
}

fn bad_input(input: &Input) -> Result<Option<&'static str>> {
    let parts = [
        ("the noisy latents", Some(&input.latents)),
        ("the timesteps", Some(&input.timestep)),
        ("the caption's embeddings", Some(&input.text.hidden)),
        ("the image's embeddings", input.image.as_ref()),
    ];
    for (name, part) in parts {
        if let Some(part) = part
            && finite::first(part)?.is_some()
        {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
