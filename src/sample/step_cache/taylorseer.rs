//! TaylorSeer: what is computed in some steps is extrapolated from others, by a series. Equals diffusers'
//! `TaylorSeerCacheConfig`.  arXiv:2503.06923
//!
//! A step k computes if k < before, k >= after or (k - before - 1) mod interval = 0. What is extrapolated in the others is the
//! output of the whole network, which then does not run (`use_lite_mode`), or the output of every attention layer in its blocks,
//! or of every feed-forward layer as well, while norms, gates and head run (`cache_identifiers`).

use std::fmt;
use std::str::FromStr;

use candle_core::{Result, Tensor};

use super::layer_outputs::{LayerOutputs, Rule, Turn};
use super::series::Series;
use super::{Histories, Pass, Step, StepCache, Work, is_uniform, run_from};
use crate::models::denoiser::{Denoiser, Input};
use crate::nn::recall::LayerKind;

/// Settings of the cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Steps from one that computes to the next.
    pub interval: usize,
    /// Highest power of the series.
    pub order: usize,
    /// First steps, which all compute.
    pub before: usize,
    /// Step from which on all compute.
    pub after: Option<usize>,
    /// Outputs that are extrapolated.
    pub of: Outputs,
}

/// Outputs that are extrapolated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Outputs {
    /// `network`: the prediction.
    #[default]
    Network,
    /// `attention`: those of attention layers.
    Attention,
    /// `layers`: those of attention and feed-forward layers.
    Layers,
}

/// Names of outputs.
const OUTPUTS: [(&str, Outputs); 3] = [
    ("network", Outputs::Network),
    ("attention", Outputs::Attention),
    ("layers", Outputs::Layers),
];

/// TaylorSeer of a run.
#[derive(Debug)]
pub struct TaylorSeer {
    settings: Settings,
    is_uniform: bool,
    histories: Histories<History>,
}

/// Steps of one pass.
#[derive(Debug, Default)]
struct History {
    /// Steps so far.
    steps: usize,
    network: Option<Series>,
    layers: LayerOutputs<Extrapolation>,
}

/// Rule of a step.
#[derive(Debug)]
struct Extrapolation {
    settings: Settings,
    step: usize,
    turn: Turn,
}

impl Settings {
    /// Returns true for a step that computes.
    fn computes(&self, step: usize) -> bool {
        // At the first step after those before, the difference is -1.
        let offset = step as i64 - self.before as i64 - 1;
        step == 0
            || step < self.before
            || self.after.is_some_and(|after| step >= after)
            || offset.rem_euclid(self.interval as i64) == 0
    }
}

impl TaylorSeer {
    /// Cache without a history.
    pub fn new(settings: Settings, steps: &[Step]) -> Self {
        Self {
            settings,
            is_uniform: is_uniform(steps),
            histories: Histories::default(),
        }
    }
}

impl StepCache for TaylorSeer {
    fn predict(&mut self, denoiser: &dyn Denoiser, input: &Input, pass: Pass) -> Result<(Tensor, Work)> {
        let history = self.histories.of(pass);
        let step = history.steps;
        history.steps += 1;
        match self.settings.of {
            Outputs::Network => history.predict(denoiser, input, step, &self.settings),
            Outputs::Attention | Outputs::Layers => {
                let rule = Extrapolation {
                    settings: self.settings,
                    step,
                    turn: match self.settings.computes(step) {
                        true => Turn::Store,
                        false => Turn::Reuse,
                    },
                };
                let embedded = denoiser.embed(input)?;
                let (ended, work) = history.layers.run(rule, || run_from(denoiser, 0, &embedded))?;
                Ok((denoiser.head(&ended)?, work))
            }
        }
    }

    fn separates_passes(&self) -> bool {
        self.settings.interval > 1 && !self.is_uniform
    }
}

impl History {
    fn predict(
        &mut self,
        denoiser: &dyn Denoiser,
        input: &Input,
        step: usize,
        settings: &Settings,
    ) -> Result<(Tensor, Work)> {
        if let Some(series) = self.network.as_ref().filter(|_| !settings.computes(step)) {
            return Ok((series.at(step)?, Work::Reused));
        }
        let output = denoiser.forward(input)?.detach();
        self.network = Some(Series::next(self.network.as_ref(), step, &output, settings.order)?);
        Ok((output, Work::Computed))
    }
}

impl Rule for Extrapolation {
    type History = Vec<Series>;

    fn turn(&self, kind: LayerKind) -> Option<Turn> {
        let is_attention = kind != LayerKind::FeedForward;
        (is_attention || self.settings.of == Outputs::Layers).then_some(self.turn)
    }

    fn keep(&self, kept: &mut Vec<Series>, outputs: &[Tensor]) -> Result<()> {
        let next = outputs
            .iter()
            .enumerate()
            .map(|(i, output)| Series::next(kept.get(i), self.step, output, self.settings.order));
        *kept = next.collect::<Result<_>>()?;
        Ok(())
    }

    fn recall(&self, kept: &mut Vec<Series>) -> Result<Vec<Tensor>> {
        kept.iter().map(|series| series.at(self.step)).collect()
    }
}

impl FromStr for Outputs {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let named = OUTPUTS.iter().find(|(name, _)| *name == text);
        named.map(|(_, outputs)| *outputs).ok_or(())
    }
}

impl fmt::Display for Outputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = OUTPUTS.iter().find(|(_, outputs)| outputs == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}
