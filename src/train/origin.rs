//! Where a loss or a gradient that is not finite comes from.
//!
//! Only a step that went wrong is looked into, so that nothing of this costs a good one. What a pass reads and makes is gone
//! through in its order, and the first thing that holds NaN or an infinity is the origin: adapters, then the input, then
//! stem, blocks and head; on the way back the gradients, from the last layer to the first.

use candle_core::{Result, Tensor};

use crate::finite;
use crate::models::denoiser::{Denoiser, Input};
use crate::ops::tape::forget;

/// The first thing that is not finite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The adapters themselves, by the place of the variable.
    Adapter(usize),
    /// Something that the network was given.
    Input(&'static str),
    /// What embeds the input.
    Stem,
    /// A block of so many.
    Block(usize, usize),
    Head,
    /// The loss alone: the prediction is finite, and too far from its target.
    Loss,
    /// A gradient, by the place of the variable: the losses are finite.
    Gradient(usize),
    /// No gradient, but the norm of all of them.
    Norm,
}

impl Origin {
    /// Whether no later step can go better.
    pub fn stays(&self) -> bool {
        matches!(self, Self::Adapter(_))
    }

    /// Whether the frozen weights may be at fault.
    pub fn is_network(&self) -> bool {
        matches!(self, Self::Stem | Self::Block(..) | Self::Head)
    }

    /// Of a pass over `input` whose loss is not finite.
    pub fn of_loss(denoiser: &dyn Denoiser, input: &Input) -> Result<Self> {
        if let Some(part) = bad_input(input)? {
            return Ok(Self::Input(part));
        }
        let mut state = forget(|| denoiser.stem(input))?;
        if bad(&state.tensors())? {
            return Ok(Self::Stem);
        }
        let count = denoiser.num_blocks();
        for index in 0..count {
            state = forget(|| denoiser.block(index, &state))?;
            if bad(&state.tensors())? {
                return Ok(Self::Block(index, count));
            }
        }
        match bad(&[forget(|| denoiser.head(&state))?])? {
            true => Ok(Self::Head),
            false => Ok(Self::Loss),
        }
    }

    /// Of gradients whose norm is not finite, in the order of the layers.
    pub fn of_gradients(gradients: &[Tensor]) -> Result<Self> {
        let found = last(gradients)?;
        Ok(found.map_or(Self::Norm, Self::Gradient))
    }

    /// In words; `adapter` names a variable.
    pub fn in_words(&self, adapter: impl Fn(usize) -> String) -> String {
        match self {
            Self::Adapter(place) => format!("the adapters are not finite any more, first {}", adapter(*place)),
            Self::Input(part) => format!("{part} are not finite"),
            Self::Stem => "it begins in what embeds the input, before the first block".into(),
            Self::Block(index, count) => format!("it begins in block {index} (of 0 to {})", count - 1),
            Self::Head => "it begins behind the last block".into(),
            Self::Loss => "the prediction is finite, and its error is not".into(),
            Self::Gradient(place) => format!("on the way back it begins in the gradient of {}", adapter(*place)),
            Self::Norm => "every gradient is finite, and their norm is not".into(),
        }
    }
}

/// The first of some tensors that is not finite.
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
