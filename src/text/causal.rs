//! Causal attention: a token sees those before it, and itself.

use candle_core::{Device, Result, Tensor};

/// Returns what is added to the scores of `tokens` tokens: 0 for keys up to a query's own place, minus infinity behind it.
///
/// -> (1, 1, L, L) f32
pub fn causal_mask(tokens: usize, device: &Device) -> Result<Tensor> {
    let mut mask = vec![0f32; tokens * tokens];
    for (query, row) in mask.chunks_mut(tokens.max(1)).enumerate() {
        row[query + 1..].fill(f32::NEG_INFINITY);
    }
    Tensor::from_vec(mask, (1, 1, tokens, tokens), device)
}
