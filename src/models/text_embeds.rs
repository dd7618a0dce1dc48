//! Encoded prompts, alone and as a batch.
//!
//! Shapes: B prompts, L text tokens.

use candle_core::{DType, Device, Error, Result, Tensor};

/// Names of a record's tensors, and their shapes without the batch.
pub type TensorSpecs = Vec<(&'static str, Vec<usize>)>;

/// Size of a family's embedded prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextShape {
    /// Number of tokens, L
    pub tokens: usize,
    /// Width of a token.
    pub width: usize,
    /// True if padding is masked.
    pub masked: bool,
    /// Width of a vector for the whole prompt, if there is one.
    pub pooled: Option<usize>,
}

impl TextShape {
    /// Tokens of this width, without a mask or a pooled vector.
    pub const fn new(tokens: usize, width: usize) -> Self {
        Self {
            tokens,
            width,
            masked: false,
            pooled: None,
        }
    }

    /// Tokens of this width, whose padding is masked.
    pub const fn masked(tokens: usize, width: usize) -> Self {
        Self {
            masked: true,
            ..Self::new(tokens, width)
        }
    }

    /// Returns the tensors of a caption's record, in the order of [`TextEmbeds::tensors`].
    pub fn tensors(&self) -> TensorSpecs {
        let mask = self.masked.then(|| ("mask", vec![self.tokens]));
        let pooled = self.pooled.map(|width| ("pooled", vec![width]));
        let embeds = ("embeds", vec![self.tokens, self.width]);
        [Some(embeds), mask, pooled].into_iter().flatten().collect()
    }
}

/// Encoded prompts.
#[derive(Debug, Clone)]
pub struct TextEmbeds {
    /// Embeddings (B, L, text width)
    pub hidden: Tensor,
    /// 1 for a prompt's own tokens, 0 for padding that must not be attended to, (B, L) in f32; None if padding counts
    pub mask: Option<Tensor>,
    /// A vector for each whole prompt, (B, pooled width); None if the text encoder has none
    pub pooled: Option<Tensor>,
}

impl From<Tensor> for TextEmbeds {
    /// Prompts (B, L, text width) whose padding counts.
    fn from(hidden: Tensor) -> Self {
        Self {
            hidden,
            mask: None,
            pooled: None,
        }
    }
}

impl TextEmbeds {
    /// Returns the tensors for storage; the inverse of `stack`.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let all = [Some(&self.hidden), self.mask.as_ref(), self.pooled.as_ref()];
        all.into_iter().flatten().collect()
    }

    /// Stacks prompts to a batch, each stored as the tensors of `shape`, without their batch: (L, text width); (L) of
    /// any type, if masked; (pooled width), if pooled.
    ///
    /// # Errors
    /// Fails for prompts of another number of tensors.
    pub fn stack(prompts: &[Vec<Tensor>], shape: &TextShape) -> Result<Self> {
        let count = shape.tensors().len();
        if prompts.is_empty() || prompts.iter().any(|prompt| prompt.len() != count) {
            let counts: Vec<usize> = prompts.iter().map(Vec::len).collect();
            return Err(Error::Msg(format!("{counts:?} tensors for encoded prompts of {count}")));
        }
        let part = |index: usize| {
            let parts: Vec<&Tensor> = prompts.iter().map(|prompt| &prompt[index]).collect();
            Tensor::stack(&parts, 0)
        };
        Ok(Self {
            hidden: part(0)?,
            mask: shape.masked.then(|| part(1)?.to_dtype(DType::F32)).transpose()?,
            pooled: shape.pooled.map(|_| part(count - 1)).transpose()?,
        })
    }

    /// Concatenates prompts to a batch.
    pub fn cat(texts: &[Self]) -> Result<Self> {
        let join = |part: fn(&Self) -> Option<&Tensor>| {
            let parts: Vec<&Tensor> = texts.iter().filter_map(part).collect();
            (!parts.is_empty()).then(|| Tensor::cat(&parts, 0)).transpose()
        };
        Ok(Self {
            hidden: Tensor::cat(&texts.iter().map(|text| &text.hidden).collect::<Vec<_>>(), 0)?,
            mask: join(|text| text.mask.as_ref())?,
            pooled: join(|text| text.pooled.as_ref())?,
        })
    }

    /// Returns `len` prompts from `start` on.
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        self.map(|tensor| tensor.narrow(0, start, len))
    }

    /// Cuts off what is padding in every prompt; no mask is left if nothing of the rest is padding.
    pub fn trimmed(&self) -> Result<Self> {
        let Some(mask) = &self.mask else {
            return Ok(self.clone());
        };
        let own: Vec<Vec<f32>> = mask.to_dtype(DType::F32)?.to_vec2()?;
        let length = |row: &Vec<f32>| row.iter().rposition(|own| *own != 0.0).map_or(0, |last| last + 1);
        let longest = own.iter().map(length).max().unwrap_or(0).max(1);
        let full = own.iter().all(|row| row[..longest].iter().all(|own| *own != 0.0));
        let mask = mask.narrow(1, 0, longest)?;
        Ok(Self {
            hidden: self.hidden.narrow(1, 0, longest)?,
            mask: (!full).then_some(mask),
            pooled: self.pooled.clone(),
        })
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
        let to = |tensor: &Tensor| tensor.to_dtype(dtype);
        Ok(Self {
            hidden: to(&self.hidden)?,
            mask: self.mask.clone(),
            pooled: self.pooled.as_ref().map(to).transpose()?,
        })
    }

    fn map(&self, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            hidden: change(&self.hidden)?,
            mask: self.mask.as_ref().map(&change).transpose()?,
            pooled: self.pooled.as_ref().map(&change).transpose()?,
        })
    }
}
