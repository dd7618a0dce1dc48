//! One optimiser step: gradients of some micro-batches, their average, one clipping, one move of the adapters.

use anyhow::Context;
use candle_core::{Result, Tensor, Var};

use super::collectives;
use super::micro_batch::{MicroBatch, MicroBatchStats, MicroBatches};
use super::nonfinite::{self, NonfiniteOrigin};
use super::segments::{LossAndGrads, SavedActivations, forward_backward};
use crate::diffusion::objective;
use crate::distributed::Communicator;
use crate::models::denoiser::Denoiser;
use crate::nn::dropout::Seed;
use crate::optim::adamw::AdamW;
use crate::optim::clip;

/// The model, its data and its optimiser.
pub struct Trainer<'a> {
    /// Source of micro-batches.
    pub source: MicroBatches<'a>,
    /// Those who make each step together.
    pub ranks: &'a dyn Communicator,
    /// The transformer with its adapters.
    pub denoiser: Box<dyn Denoiser>,
    /// The adapters' matrices.
    pub vars: Vec<Var>,
    /// Optimiser of the adapters.
    pub optimizer: AdamW,
    /// Seed of the adapters' dropout: set anew for each micro-batch, unset in between.
    pub dropout: Seed,
    /// Results of blocks that are kept for the way back.
    pub saved_activations: SavedActivations,
    /// Micro-batches of one step on each rank.
    pub accumulation: u64,
    /// None: gradients are not clipped.
    pub max_grad_norm: Option<f64>,
}

/// Result of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Mean over the micro-batches of all ranks.
    pub loss: f64,
    /// Global norm before clipping.
    pub grad_norm: f64,
    /// Micro-batches that it trained on.
    pub seen: Vec<MicroBatchStats>,
    /// Set if the update was skipped: where the first value that is not finite appeared.
    pub fault: Option<NonfiniteOrigin>,
}

impl Outcome {
    /// Clips that were shown.
    pub fn samples(&self) -> usize {
        self.seen.iter().map(|seen| seen.samples.len()).sum()
    }
}

impl Trainer<'_> {
    /// Step `step`, counted from 0, at the learning rate `lr`. All ranks return the same.
    ///
    /// # Errors
    /// A cache file that can no longer be read; out of memory on a device; ranks that did not come.
    pub fn step(&mut self, step: u64, lr: f64) -> anyhow::Result<Outcome> {
        let mut gradients = Gradients::new(&self.vars);
        let mut shown = Vec::new();
        let (rank, world_size) = (self.ranks.rank() as u64, self.ranks.world_size() as u64);
        for m in 0..self.accumulation {
            let i = (step * self.accumulation + m) * world_size + rank;
            let micro_batch = self.source.micro_batch(i)?;
            self.dropout.set(Some(micro_batch.seed));
            let passed = self.pass(&micro_batch);
            self.dropout.set(None);
            let passed = passed.with_context(|| format!("step {}", step + 1))?;
            gradients.add(passed.gradients)?;
            shown.push((passed.loss, micro_batch.batch.samples, micro_batch.timesteps.values));
        }
        if self.ranks.is_distributed() {
            gradients.sums = collectives::sum(self.ranks, gradients.sums, &self.vars)?
                .into_iter()
                .map(Some)
                .collect();
        }
        let gradients = gradients.average(self.accumulation * world_size)?;
        // Here a GPU is waited for, once a step.
        let grad_norm = clip::global_norm(&gradients)?;
        let seen = collectives::exchange(
            self.ranks,
            shown.into_iter().map(MicroBatchStats::read).collect::<Result<_>>()?,
        )?;

        let loss = seen.iter().map(|seen| seen.loss).sum::<f64>() / seen.len() as f64;
        let fault = match loss.is_finite() && grad_norm.is_finite() {
            true => {
                let scale = self
                    .max_grad_norm
                    .map_or(1.0, |most| clip::coefficient(grad_norm, most));
                self.optimizer.step(&gradients, scale, lr)?;
                None
            }
            false => Some(self.origin(step, &seen, &gradients)?),
        };
        Ok(Outcome {
            loss,
            grad_norm,
            seen,
            fault,
        })
    }

    /// Where it begins that this step is not finite. The micro-batch at fault is drawn and run once more, as it was, by every
    /// rank: `seen` and `gradients` are of all.
    fn origin(&mut self, step: u64, seen: &[MicroBatchStats], gradients: &[Tensor]) -> anyhow::Result<NonfiniteOrigin> {
        if let Some(place) = nonfinite::first(self.vars.iter().map(Var::as_tensor))? {
            return Ok(NonfiniteOrigin::Adapter(place));
        }
        let Some(m) = seen.iter().position(|seen| !seen.loss.is_finite()) else {
            return Ok(NonfiniteOrigin::of_gradients(gradients)?);
        };
        let micro_batches = self.accumulation * self.ranks.world_size() as u64;
        let micro_batch = self.source.micro_batch(step * micro_batches + m as u64)?;
        self.dropout.set(Some(micro_batch.seed));
        let origin = NonfiniteOrigin::of_loss(&*self.denoiser, &micro_batch.input);
        self.dropout.set(None);
        Ok(origin?)
    }

    /// Loss and gradients of one micro-batch.
    pub fn pass(&self, micro_batch: &MicroBatch) -> Result<LossAndGrads> {
        let MicroBatch { target, weight, .. } = micro_batch;
        let loss = |prediction: &Tensor| objective::loss(prediction, target, weight.as_ref());
        forward_backward(
            &*self.denoiser,
            &micro_batch.input,
            &loss,
            &self.vars,
            self.saved_activations.clone(),
        )
    }
}

/// The sum of the micro-batches' gradients, one for each variable.
struct Gradients<'a> {
    vars: &'a [Var],
    sums: Vec<Option<Tensor>>,
}

impl<'a> Gradients<'a> {
    fn new(vars: &'a [Var]) -> Self {
        Self {
            vars,
            sums: vec![None; vars.len()],
        }
    }

    fn add(&mut self, gradients: Vec<Option<Tensor>>) -> Result<()> {
        for (sum, gradient) in self.sums.iter_mut().zip(gradients) {
            *sum = match (sum.take(), gradient) {
                (Some(sum), Some(gradient)) => Some((sum + gradient)?),
                (sum, gradient) => sum.or(gradient),
            };
        }
        Ok(())
    }

    /// A variable that no loss depends on has a gradient of zeros.
    fn average(self, count: u64) -> Result<Vec<Tensor>> {
        let average = |(sum, var): (Option<Tensor>, &Var)| match sum {
            Some(sum) if count == 1 => Ok(sum),
            Some(sum) => sum / count as f64,
            None => var.zeros_like(),
        };
        self.sums.into_iter().zip(self.vars).map(average).collect()
    }
}
