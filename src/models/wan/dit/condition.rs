//! Embeddings of a Wan transformer's conditions: timestep, text, image. Equals `WanTimeTextImageEmbedding`.
//!
//! Shapes: B samples, L text tokens, M image tokens, D the model's width.

use candle_core::{DType, Result, Tensor};

use super::config::Config;
use crate::nn::embed::TimeModulation;
use crate::nn::feed_forward::{FeedForward, Gelu, NET, PROJECTION};
use crate::nn::{Norm, Weights};

/// Epsilon of the norms around the image's projection.
const IMAGE_NORM_EPS: f64 = 1e-5;

/// `condition_embedder`
#[derive(Debug, Clone)]
pub struct ConditionEmbedder {
    pub time: TimeModulation, // time_embedder, time_proj
    pub text_embedder: FeedForward,
    image_embedder: Option<ImageEmbedder>,
}

impl ConditionEmbedder {
    pub fn new(config: &Config, weights: Weights) -> Result<Self> {
        let dim = config.inner_dim();
        // In f32 as in diffusers, whatever the other weights are.
        let embedder = weights.pp("time_embedder").to_dtype(DType::F32);
        let text = [config.text_dim, dim, dim];
        Ok(Self {
            time: TimeModulation::new(config.freq_dim, dim, embedder, weights.pp("time_proj"))?,
            text_embedder: FeedForward::new(text, PROJECTION, Gelu::Tanh, weights.pp("text_embedder"))?,
            image_embedder: config
                .image_dim
                .map(|width| ImageEmbedder::new(config, width, weights.pp("image_embedder")))
                .transpose()?,
        })
    }

    /// Embeds an image (B, M, image width) -> (B, M, D), for models that attend to one.
    pub fn image(&self, image: Option<&Tensor>) -> Result<Option<Tensor>> {
        let both = self.image_embedder.as_ref().zip(image);
        both.map(|(embedder, image)| embedder.forward(image)).transpose()
    }
}

/// Norm, feed-forward, norm.
#[derive(Debug, Clone)]
struct ImageEmbedder {
    norm1: Norm,
    ff: FeedForward,
    norm2: Norm,
    pos_embed: Option<Tensor>, // (1, M, image width)
}

impl ImageEmbedder {
    fn new(config: &Config, width: usize, weights: Weights) -> Result<Self> {
        let dim = config.inner_dim();
        Ok(Self {
            norm1: Norm::layer(width, IMAGE_NORM_EPS, weights.pp("norm1"))?,
            ff: FeedForward::new([width, width, dim], NET, Gelu::Erf, weights.pp("ff"))?,
            norm2: Norm::layer(dim, IMAGE_NORM_EPS, weights.pp("norm2"))?,
            pos_embed: config
                .pos_embed_seq_len
                .map(|tokens| weights.get((1, tokens, width), "pos_embed"))
                .transpose()?,
        })
    }

    fn forward(&self, image: &Tensor) -> Result<Tensor> {
        let image = match &self.pos_embed {
            Some(positions) => image.broadcast_add(positions)?,
            None => image.clone(),
        };
        self.norm2.forward(&self.ff.forward(&self.norm1.forward(&image)?)?)
    }
}
