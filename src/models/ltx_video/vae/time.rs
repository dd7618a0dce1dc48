//! What a timestep says to the decoder's norms: `PixArtAlphaCombinedTimestepSizeEmbeddings` without sizes, which is 256
//! cosines and sines, then linear, SiLU, linear.

use candle_core::{Result, Tensor};

use crate::nn::Weights;
use crate::nn::embed::{Sinusoid, TimestepEmbedding};

const TIME_PROJ: Sinusoid = Sinusoid {
    width: 256,
    flip_sin_to_cos: true,
    freq_shift: 0.0,
};

pub struct TimeEmbedder {
    timestep_embedder: TimestepEmbedding,
    rows: usize,
}

impl TimeEmbedder {
    /// Reads `time_embedder`, for norms that take so many rows of `channels`.
    pub fn load(rows: usize, channels: usize, weights: &Weights) -> Result<Self> {
        let weights = weights.pp("time_embedder.timestep_embedder");
        Ok(Self {
            timestep_embedder: TimestepEmbedding::new(TIME_PROJ.width, rows * channels, weights)?,
            rows,
        })
    }

    /// A timestep (1) in 0..1000 -> (rows, C)
    pub fn forward(&self, timestep: &Tensor, like: &Tensor) -> Result<Tensor> {
        let sines = TIME_PROJ.forward(timestep)?.to_dtype(like.dtype())?; // (1, 256)
        self.timestep_embedder.forward(&sines)?.reshape((self.rows, ()))
    }
}
