//! Embedding of timestep, pooled text and guidance scale as one vector, which modulates a transformer's blocks. Equals
//! `CombinedTimestepGuidanceTextProjEmbeddings` of diffusers.
//!
//! Shapes: B samples, P the pooled text's width, D the model's.

use candle_core::{Result, Tensor};

use super::embed::{TimeEmbedder, TimestepEmbedding};
use super::weights::Weights;

/// Timesteps per unit of the guidance scale, which is embedded like one.
const GUIDANCE_SCALE: f64 = 1000.0;

/// Sizes of the embedding.
#[derive(Debug, Clone, Copy)]
pub struct ConditionEmbedSpec {
    /// Sines and cosines of a timestep.
    pub time_width: usize,
    /// Width of the pooled text, P.
    pub pooled_dim: usize,
    /// Width of the model, D.
    pub dim: usize,
    /// True if a guidance scale is embedded.
    pub guidance: bool,
}

/// Embedding of the conditions.
#[derive(Debug, Clone)]
pub struct ConditionEmbed {
    timestep_embedder: TimeEmbedder,
    text_embedder: TimestepEmbedding,
    guidance_embedder: Option<TimeEmbedder>,
}

impl ConditionEmbed {
    /// Reads `timestep_embedder`, `text_embedder` and, if there is one, `guidance_embedder`.
    pub fn new(spec: ConditionEmbedSpec, weights: Weights) -> Result<Self> {
        let embedder = |name: &str| TimeEmbedder::new(spec.time_width, spec.dim, weights.pp(name));
        Ok(Self {
            timestep_embedder: embedder("timestep_embedder")?,
            text_embedder: TimestepEmbedding::new(spec.pooled_dim, spec.dim, weights.pp("text_embedder"))?,
            guidance_embedder: spec.guidance.then(|| embedder("guidance_embedder")).transpose()?,
        })
    }

    /// Embeds timesteps (B), pooled texts (B, P) and the guidance scales of the samples, or one for all -> (B, D)
    pub fn forward(&self, timestep: &Tensor, pooled: &Tensor, scales: Option<&[f64]>) -> Result<Tensor> {
        let time = (self.timestep_embedder.forward(timestep)? + self.text_embedder.forward(pooled)?)?; // (B, D)
        let (Some(embedder), Some(scales)) = (&self.guidance_embedder, scales) else {
            return Ok(time);
        };
        // In f32, since bf16 has no 6000.
        let scales: Vec<f32> = scales.iter().map(|scale| (scale * GUIDANCE_SCALE) as f32).collect();
        time.broadcast_add(&embedder.forward(&Tensor::new(scales, time.device())?)?)
    }
}
