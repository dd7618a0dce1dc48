//! Attention of a clip's tokens and a text's, as one sequence: each stream with projections of its own, or both with the
//! same. Equals `HunyuanVideoAttnProcessor2_0` and `MochiAttnProcessor2_0` of diffusers.
//!
//! Padding of a text may be left out sample by sample, or be a key that no token attends to: what the text's own tokens and
//! the clip's become is the same.
//!
//! Shapes: B samples, N tokens of the clip, L of the text, S = N + L with the clip first, D the width, T the text's, H heads of
//! width K.

use candle_core::{Result, Tensor};

use super::flops::Flops;
use super::linear::{Linear, linear};
use super::norm::Norm;
use super::recall::{LayerKind, output, outputs};
use super::rope::Rotary;
use super::weights::Weights;
use crate::ops::attention::attention;
use crate::ops::join::{join, part};

/// Queries, keys and values of a stream, with an RMS norm of each head's queries and keys.
#[derive(Debug, Clone)]
pub struct Qkv {
    q: Linear,
    k: Linear,
    v: Linear,
    norm_q: Norm,
    norm_k: Norm,
    num_heads: usize,
}

/// Settings of the layer.
#[derive(Debug, Clone, Copy)]
pub struct JointAttentionSpec {
    /// D
    pub width: usize,
    /// T
    pub text_width: usize,
    /// H
    pub num_heads: usize,
    /// Epsilon of the norms.
    pub eps: f64,
    /// True for biases of queries, keys and values.
    pub bias: bool,
    /// True if the text is changed as well.
    pub updates_text: bool,
}

impl JointAttentionSpec {
    /// Settings of streams of one width, both changed, with biases.
    pub fn new(width: usize, num_heads: usize, eps: f64) -> Self {
        Self {
            width,
            text_width: width,
            num_heads,
            eps,
            bias: true,
            updates_text: true,
        }
    }
}

/// Positions and mask of both streams as one sequence.
#[derive(Debug, Clone, Copy)]
pub struct SequenceContext<'a> {
    /// Rotation of all S tokens.
    pub rotary: &'a Rotary,
    /// Added to the scores, (B, 1, 1, S)
    pub mask: Option<&'a Tensor>,
}

/// Returns what is added to the scores of keys, given the mask of the text's tokens (B, L), 1 and 0, behind so many of the
/// clip: minus infinity for padding, (B, 1, 1, S).
pub fn padding_bias(mask: &Tensor, clip_tokens: usize) -> Result<Tensor> {
    let away = Tensor::full(f32::NEG_INFINITY, mask.shape(), mask.device())?;
    let bias = mask.ne(0f32)?.where_cond(&mask.zeros_like()?, &away)?; // (B, L)
    bias.pad_with_zeros(1, clip_tokens, 0)?.unsqueeze(1)?.unsqueeze(1)
}

/// Attention of two streams with projections of their own.
#[derive(Debug, Clone)]
pub struct JointAttention {
    video: Qkv,                 // to_q, to_k, to_v, norm_q, norm_k
    text: Qkv,                  // add_q_proj, add_k_proj, add_v_proj, norm_added_q, norm_added_k
    to_out: Linear,             // to_out.0
    to_add_out: Option<Linear>, // (T, D)
}

impl Qkv {
    /// Loads the layers of tokens of width `from` by these names: three of queries, keys and values, two of norms.
    ///
    /// # Errors
    /// Fails for weights that are missing or of another shape.
    pub fn new(spec: JointAttentionSpec, from: usize, names: [&str; 5], weights: &Weights) -> Result<Self> {
        let JointAttentionSpec {
            width,
            num_heads,
            eps,
            bias,
            ..
        } = spec;
        let [q, k, v, norm_q, norm_k] = names;
        let projection = |name: &str| Linear::new(from, width, bias, weights.pp(name));
        let norm = |name: &str| Norm::rms(width / num_heads.max(1), eps, weights.pp(name));
        Ok(Self {
            q: projection(q)?,
            k: projection(k)?,
            v: projection(v)?,
            norm_q: norm(norm_q)?,
            norm_k: norm(norm_k)?,
            num_heads,
        })
    }

    /// Loads the layers of one stream, or of both streams with the same.
    ///
    /// # Errors
    /// Same as [`new`](Self::new).
    pub fn shared(spec: JointAttentionSpec, weights: &Weights) -> Result<Self> {
        Self::new(spec, spec.width, ["to_q", "to_k", "to_v", "norm_q", "norm_k"], weights)
    }

    /// Self-attention of x (B, S, D), without a layer behind it -> (B, S, D)
    pub fn attend(&self, x: &Tensor, context: SequenceContext) -> Result<Tensor> {
        output(LayerKind::SelfAttention, || attended(self.forward(x)?, context))
    }

    /// Returns queries, keys and values of x (B, S, D): (B, S, H, K) each
    fn forward(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let (batch, tokens, _) = x.dims3()?;
        let heads = |x: Tensor| x.reshape((batch, tokens, self.num_heads, ()));
        Ok([
            self.norm_q.forward(&heads(self.q.forward(x)?)?)?,
            self.norm_k.forward(&heads(self.k.forward(x)?)?)?,
            heads(self.v.forward(x)?)?,
        ])
    }

    /// Returns the floating-point operations for `tokens` tokens, without attention.
    pub fn flops(&self, tokens: usize) -> Result<f64> {
        Ok(self.q.flops(tokens)? + self.k.flops(tokens)? + self.v.flops(tokens)?)
    }
}

impl JointAttention {
    /// Loads the layer.
    ///
    /// # Errors
    /// Fails for weights that are missing or of another shape.
    pub fn new(spec: JointAttentionSpec, weights: Weights) -> Result<Self> {
        let width = spec.width;
        let added = ["add_q_proj", "add_k_proj", "add_v_proj", "norm_added_q", "norm_added_k"];
        Ok(Self {
            video: Qkv::shared(spec, &weights)?,
            text: Qkv::new(spec, spec.text_width, added, &weights)?,
            to_out: linear(width, width, weights.pp("to_out.0"))?,
            to_add_out: spec
                .updates_text
                .then(|| linear(width, spec.text_width, weights.pp("to_add_out")))
                .transpose()?,
        })
    }

    /// Forward pass of the clip (B, N, D) and the text (B, L, T) -> the same two, or without a text that is not changed
    pub fn forward(&self, video: &Tensor, text: &Tensor, context: SequenceContext) -> Result<(Tensor, Option<Tensor>)> {
        let mut outputs = outputs(LayerKind::SelfAttention, || self.streams(video, text, context))?.into_iter();
        Ok((outputs.next().expect("the clip's comes first"), outputs.next()))
    }

    fn streams(&self, video: &Tensor, text: &Tensor, context: SequenceContext) -> Result<Vec<Tensor>> {
        let (of_video, of_text) = (self.video.forward(video)?, self.text.forward(text)?);
        let mut both = Vec::with_capacity(of_video.len());
        for (video, text) in of_video.iter().zip(&of_text) {
            both.push(join(video, text, 1)?); // (B, S, H, K)
        }
        let both: [Tensor; 3] = both.try_into().expect("queries, keys and values");
        let y = attended(both, context)?; // (B, S, D)
        let (count, length) = (video.dim(1)?, text.dim(1)?);
        let text = self
            .to_add_out
            .as_ref()
            .map(|to_add_out| to_add_out.forward(&part(&y, 1, count, length)?));
        let video = self.to_out.forward(&part(&y, 1, 0, count)?);
        [video].into_iter().chain(text).collect()
    }

    /// Returns the floating-point operations for the tokens of both streams.
    pub fn flops(&self, video: usize, text: usize) -> Result<Flops> {
        let of_text = self.to_add_out.as_ref().map(|to_add_out| to_add_out.flops(text));
        let out = self.to_out.flops(video)? + of_text.transpose()?.unwrap_or(0.0);
        Ok(Flops {
            linear: self.video.flops(video)? + self.text.flops(text)? + out,
            attention: 4.0 * ((video + text) as f64).powi(2) * self.to_out.out_features()? as f64,
        })
    }
}

/// Attention of queries, keys and values (B, S, H, K), rotated -> (B, S, D)
fn attended([q, k, v]: [Tensor; 3], context: SequenceContext) -> Result<Tensor> {
    let (q, k) = (context.rotary.apply(&q)?, context.rotary.apply(&k)?);
    attention(&q, &k, &v, context.mask)?.flatten_from(2)
}
