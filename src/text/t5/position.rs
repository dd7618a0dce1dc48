//! Relative positions as a learnt bias on attention scores, one number per head and bucket of distances.
//!
//! Half of the buckets are for following tokens, half for preceding ones. In each direction the first half has one
//! distance per bucket, the second half logarithmically more, up to `max_distance`; larger distances share the last.
//! arXiv:1910.10683, 2.1

use candle_core::{DType, Device, Result, Tensor};

use crate::nn::Weights;

use super::config::Config;

/// `relative_attention_bias` of a block: T5's blocks share the first one's, UMT5's have one each.
#[derive(Debug)]
pub struct RelativeAttentionBias {
    /// Bias of each bucket, per head.
    heads: Vec<Vec<f32>>,
    num_buckets: usize,
    max_distance: usize,
}

impl RelativeAttentionBias {
    /// Reads `relative_attention_bias.weight` (buckets, H).
    pub fn new(config: &Config, weights: Weights) -> Result<Self> {
        let num_buckets = config.relative_attention_num_buckets;
        let weights = weights.pp("relative_attention_bias").to_dtype(DType::F32);
        let weight = weights.get((num_buckets, config.num_heads), "weight")?;
        Ok(Self {
            heads: weight.t()?.to_vec2()?,
            num_buckets,
            max_distance: config.relative_attention_max_distance,
        })
    }

    /// Returns the bias between `length` tokens (rows) and each other (columns).
    ///
    /// -> (H, L, L)
    pub fn forward(&self, length: usize, device: &Device) -> Result<Tensor> {
        // The bias depends on the distance alone, so each row is the previous one, shifted by one.
        let distances = 1 - length as i64..length as i64;
        let buckets: Vec<usize> = distances
            .map(|d| bucket(d, self.num_buckets, self.max_distance))
            .collect();
        let mut biases = Vec::with_capacity(self.heads.len() * length * length);
        for head in &self.heads {
            let line: Vec<f32> = buckets.iter().map(|bucket| head[*bucket]).collect(); // (2L - 1)
            for row in 0..length {
                let first = length - 1 - row;
                biases.extend_from_slice(&line[first..first + length]);
            }
        }
        Tensor::from_vec(biases, (self.heads.len(), length, length), device)
    }
}

/// Returns the bucket of a token `distance` positions later.
pub fn bucket(distance: i64, num_buckets: usize, max_distance: usize) -> usize {
    let side = num_buckets / 2;
    let near = side / 2;
    let first = if distance > 0 { side } else { 0 };
    let away = distance.unsigned_abs() as usize;
    if away < near {
        return first + away;
    }
    // In f32 as in the reference: at powers the rounding decides between two buckets.
    let octaves = (away as f32 / near as f32).ln() / (max_distance as f64 / near as f64).ln() as f32;
    let far = near + (octaves * (side - near) as f32) as usize;
    first + far.min(side - 1)
}
