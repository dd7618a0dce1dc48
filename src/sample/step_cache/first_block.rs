//! First block cache: the first block runs in every step, and tells whether the others must. Equals diffusers'
//! `FirstBlockCacheConfig`, whose rule is ParaAttention's.
//!
//! With r = out - in of the first block, and r' that of the last step that ran all blocks, the others are skipped if
//! mean|r - r'| / mean|r'| <= threshold; the output is then that of the first block plus what the others added in that step.

use candle_core::{DType, Result, Tensor};

use super::{Histories, Pass, StepCache, Work, run_from};
use crate::models::denoiser::{Denoiser, Input};

/// First block cache of a run.
#[derive(Debug, Clone)]
pub struct FirstBlock {
    threshold: f64,
    histories: Histories<Option<Step>>,
}

/// A step that ran all blocks.
#[derive(Debug, Clone)]
struct Step {
    /// Change by the first block, (B, N, D)
    first: Tensor,
    /// Change by the others, (B, N, D)
    others: Tensor,
}

impl FirstBlock {
    /// Cache without a history.
    pub fn new(threshold: f64) -> Self {
        Self {
            threshold,
            histories: Histories::default(),
        }
    }
}

impl StepCache for FirstBlock {
    fn predict(&mut self, denoiser: &dyn Denoiser, input: &Input, pass: Pass) -> Result<(Tensor, Work)> {
        if denoiser.num_blocks() == 0 {
            return Ok((denoiser.forward(input)?, Work::Computed));
        }
        let embedded = denoiser.embed(input)?;
        let begun = denoiser.block(0, &embedded)?;
        let clip = begun.clip()?;
        let first = (&clip - embedded.clip()?)?;
        let history = self.histories.of(pass);
        if let Some(before) = history
            && change(&first, &before.first)? <= self.threshold
        {
            let ended = begun.with_clip((clip + &before.others)?)?;
            return Ok((denoiser.head(&ended)?, Work::Reused));
        }
        let ended = run_from(denoiser, 1, &begun)?;
        let others = (ended.clip()? - clip)?.detach();
        *history = Some(Step {
            first: first.detach(),
            others,
        });
        Ok((denoiser.head(&ended)?, Work::Computed))
    }

    fn separates_passes(&self) -> bool {
        self.threshold > 0.0
    }
}

/// mean|r - r'| / mean|r'|
fn change(residual: &Tensor, before: &Tensor) -> Result<f64> {
    let mean = |tensor: Tensor| -> Result<f64> {
        let mean = tensor.to_dtype(DType::F32)?.abs()?.mean_all()?;
        Ok(f64::from(mean.to_scalar::<f32>()?))
    };
    Ok(mean((residual - before)?)? / mean(before.clone())?)
}
