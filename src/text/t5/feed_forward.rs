//! Feed-forward layer of a block: `wo(act(wi(x)))`, or with a gate `wo(act(wi_0(x)) * wi_1(x))`.

use candle_core::{DType, Result, Tensor};

use crate::nn::Weights;
use crate::text::projection::Projection;

use super::config::{Config, FeedForwardProj};
use super::elementwise::gelu_times;

/// Equals transformers' T5DenseActDense and T5DenseGatedActDense.
#[derive(Debug)]
pub struct FeedForward {
    inner: Inner,
    /// Output projection in f32, because T5's activations grow large here.
    wo: Projection, // (D, F)
}

#[derive(Debug)]
enum Inner {
    Relu { wi: Projection },                          // (F, D)
    GatedGelu { wi_0: Projection, wi_1: Projection }, // (F, D) each
}

impl FeedForward {
    /// Reads `wi`, or `wi_0` and `wi_1`, and `wo`.
    pub fn new(config: &Config, weights: Weights) -> Result<Self> {
        let (width, inner) = (config.d_model, config.d_ff);
        let projection = |name| Projection::new(width, inner, weights.pp(name));
        Ok(Self {
            inner: match config.feed_forward_proj {
                FeedForwardProj::Relu => Inner::Relu { wi: projection("wi")? },
                FeedForwardProj::GatedGelu => Inner::GatedGelu {
                    wi_0: projection("wi_0")?,
                    wi_1: projection("wi_1")?,
                },
            },
            wo: Projection::new(inner, width, weights.pp("wo").to_dtype(DType::F32))?,
        })
    }

    /// Forward pass (B, L, D) -> (B, L, D) f32
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inner = match &self.inner {
            Inner::Relu { wi } => wi.forward(x)?.relu()?,
            Inner::GatedGelu { wi_0, wi_1 } => gelu_times(wi_0.forward(x)?, &wi_1.forward(x)?)?,
        }; // (B, L, F)
        self.wo.forward(&inner)
    }
}
