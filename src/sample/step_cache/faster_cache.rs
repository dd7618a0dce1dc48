//! FasterCache: self-attention is extrapolated from two steps, and the prediction with the negative prompt is taken from that
//! with the prompt. Equals diffusers' `FasterCacheConfig`.  arXiv:2410.19355
//!
//! The i-th step runs the negative prompt if i mod `negative_skip` = 0 or its timestep is out of a range; else
//! n = p + a L(n' - p') + b (n' - p' - L(n' - p')), with p and n the predictions with the prompt and the negative one, ' for those
//! of the last step that ran both, and L the slow part (`low_pass`). a and b are 1, and grow by a factor in each such step in the
//! range of each. A step that runs one pass alone has self-attention if i mod `skip` = 0 or its timestep is out of another
//! range; else its output is y' + w (y' - y''), with those of the step before and of the one before that.
//!
//! The steps are known from the start. So y' + w (y' - y'') is kept in place of y' and y'', unless two steps in a row reuse, and
//! nothing while none does; in half of its bits. diffusers keeps both, for both prompts.

use std::collections::VecDeque;

use candle_core::{DType, Result, Tensor};

use super::halved::Halved;
use super::layer_outputs::{LayerOutputs, Rule, Turn};
use super::low_pass::low_pass;
use super::{Pass, Step, StepCache, TimestepRange, Work, run_from};
use crate::diffusion::guidance::NeededPasses;
use crate::models::denoiser::{Denoiser, Input};
use crate::nn::recall::LayerKind;

/// Timesteps in which the slow part's factor grows.
const LOW_RANGE: TimestepRange = TimestepRange::new(99.0, 901.0);

/// Timesteps in which the other's does.
const HIGH_RANGE: TimestepRange = TimestepRange::new(-1.0, 301.0);

/// Settings of the cache.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Steps from one that computes self-attention to the next.
    pub skip: usize,
    /// Timesteps in which self-attention may be extrapolated.
    pub range: TimestepRange,
    /// Weight of the difference of two outputs.
    pub weight: f64,
    /// Steps from one that runs the negative prompt to the next.
    pub negative_skip: usize,
    /// Timesteps in which the negative prompt may be left out.
    pub negative_range: TimestepRange,
    /// Growth of the difference's slow part.
    pub low: f64,
    /// Growth of the rest.
    pub high: f64,
}

/// FasterCache of a run.
#[derive(Debug)]
pub struct FasterCache {
    settings: Settings,
    /// Plans of the next steps; the first is under way.
    plan: VecDeque<Planned>,
    outputs: LayerOutputs<Extrapolation>,
    /// Prediction with the prompt in this step.
    positive: Option<Tensor>,
    difference: Option<Difference>,
}

/// Plan of a step.
#[derive(Debug, Clone, Copy)]
struct Planned {
    step: Step,
    extrapolates_attention: bool,
    derives_negative: bool,
}

/// n' - p', with the factors of its parts.
#[derive(Debug)]
struct Difference {
    slow: Tensor,
    rest: Tensor,
    factors: [f64; 2],
}

/// Rule of a step.
#[derive(Debug)]
struct Extrapolation {
    weight: f64,
    turn: Turn,
    /// True for each of the next two steps that extrapolates.
    next: [bool; 2],
}

/// Memory of a layer for the steps that follow.
#[derive(Debug, Default)]
struct LayerHistory {
    /// Outputs of the next step, if it extrapolates.
    next: Option<Vec<Halved>>,
    /// y', if a later one needs it.
    last: Option<Vec<Halved>>,
}

impl Settings {
    fn plan(&self, steps: &[Step]) -> VecDeque<Planned> {
        let mut has_both = false;
        let steps = steps.iter().filter(|step| step.has(Pass::Positive)).enumerate();
        let planned = steps.map(|(i, step)| {
            let both = step.passes == NeededPasses::Both;
            let is_between = !i.is_multiple_of(self.negative_skip) && self.negative_range.contains(step.timestep);
            let derives_negative = both && has_both && is_between;
            has_both |= both;
            let may = derives_negative || !both;
            Planned {
                step: *step,
                extrapolates_attention: may && !i.is_multiple_of(self.skip) && self.range.contains(step.timestep),
                derives_negative,
            }
        });
        planned.collect()
    }
}

impl FasterCache {
    /// Cache without a history.
    pub fn new(settings: Settings, steps: &[Step]) -> Self {
        Self {
            plan: settings.plan(steps),
            settings,
            outputs: LayerOutputs::default(),
            positive: None,
            difference: None,
        }
    }

    fn rule(&self) -> Extrapolation {
        let extrapolates = |i: usize| self.plan.get(i).is_some_and(|step| step.extrapolates_attention);
        let next = [extrapolates(1), extrapolates(2)];
        Extrapolation {
            weight: self.settings.weight,
            turn: match (extrapolates(0), next) {
                (true, _) => Turn::Reuse,
                (false, [false, false]) => Turn::Compute,
                (false, _) => Turn::Store,
            },
            next,
        }
    }

    fn run_positive(&mut self, denoiser: &dyn Denoiser, input: &Input) -> Result<(Tensor, Work)> {
        let embedded = denoiser.embed(input)?;
        let (ended, work) = self.outputs.run(self.rule(), || run_from(denoiser, 0, &embedded))?;
        let output = denoiser.head(&ended)?;
        let is_alone = self
            .plan
            .front()
            .is_none_or(|now| now.step.passes != NeededPasses::Both);
        self.positive = (!is_alone).then(|| output.detach());
        if is_alone {
            self.plan.pop_front();
        }
        Ok((output, work))
    }

    fn run_negative(&mut self, denoiser: &dyn Denoiser, input: &Input) -> Result<(Tensor, Work)> {
        let now = self.plan.pop_front();
        let Some((positive, now)) = self.positive.take().zip(now) else {
            return Ok((denoiser.forward(input)?, Work::Computed));
        };
        if let Some(difference) = self.difference.as_mut().filter(|_| now.derives_negative) {
            return Ok((
                difference.added_to(&positive, now.step.timestep, &self.settings)?,
                Work::Reused,
            ));
        }
        let output = denoiser.forward(input)?;
        let is_used = self.plan.iter().any(|step| step.derives_negative);
        self.difference = is_used
            .then(|| Difference::new(&output.detach(), &positive))
            .transpose()?;
        Ok((output, Work::Computed))
    }
}

impl StepCache for FasterCache {
    fn predict(&mut self, denoiser: &dyn Denoiser, input: &Input, pass: Pass) -> Result<(Tensor, Work)> {
        match pass {
            Pass::Both => Ok((denoiser.forward(input)?, Work::Computed)),
            Pass::Positive => self.run_positive(denoiser, input),
            Pass::Negative => self.run_negative(denoiser, input),
        }
    }

    fn separates_passes(&self) -> bool {
        self.settings.skip > 1 || self.settings.negative_skip > 1
    }
}

impl Difference {
    fn new(negative: &Tensor, positive: &Tensor) -> Result<Self> {
        let difference = (negative.to_dtype(DType::F32)? - positive.to_dtype(DType::F32)?)?;
        let slow = low_pass(&difference)?;
        Ok(Self {
            rest: (difference - &slow)?,
            slow,
            factors: [1.0; 2],
        })
    }

    /// Returns n for p at a timestep.
    fn added_to(&mut self, positive: &Tensor, timestep: f64, settings: &Settings) -> Result<Tensor> {
        let growths = [(LOW_RANGE, settings.low), (HIGH_RANGE, settings.high)];
        for (factor, (range, growth)) in self.factors.iter_mut().zip(growths) {
            if range.contains(timestep) {
                *factor *= growth;
            }
        }
        let [slow, rest] = self.factors;
        let sum = ((positive.to_dtype(DType::F32)? + (&self.slow * slow)?)? + (&self.rest * rest)?)?;
        sum.to_dtype(positive.dtype())
    }
}

impl Extrapolation {
    /// Keeps what later steps need of y, given y' if it was kept.
    fn update(&self, outputs: &[Tensor], before: Option<&[Halved]>) -> Result<LayerHistory> {
        let halved = |outputs: &[Tensor]| outputs.iter().map(Halved::new).collect::<Result<Vec<_>>>();
        let [next, after_next] = self.next;
        let extrapolated = next.then(|| {
            let outputs = outputs.iter().enumerate().map(|(i, output)| {
                let Some(before) = before.and_then(|before| before.get(i)) else {
                    return Ok(output.clone()); // the first step counts twice
                };
                output + ((output - before.whole()?)? * self.weight)?
            });
            halved(&outputs.collect::<Result<Vec<_>>>()?)
        });
        Ok(LayerHistory {
            next: extrapolated.transpose()?,
            last: after_next.then(|| halved(outputs)).transpose()?,
        })
    }
}

impl Rule for Extrapolation {
    type History = LayerHistory;

    fn turn(&self, kind: LayerKind) -> Option<Turn> {
        (kind == LayerKind::SelfAttention).then_some(self.turn)
    }

    fn keep(&self, kept: &mut LayerHistory, outputs: &[Tensor]) -> Result<()> {
        let before = kept.last.take();
        kept.next = None;
        *kept = self.update(outputs, before.as_deref())?;
        Ok(())
    }

    fn recall(&self, kept: &mut LayerHistory) -> Result<Vec<Tensor>> {
        let Some(next) = kept.next.take() else {
            candle_core::bail!("a layer has nothing to extrapolate from");
        };
        let outputs: Vec<Tensor> = next.iter().map(Halved::whole).collect::<Result<_>>()?;
        let before = kept.last.take();
        *kept = match self.next {
            [false, false] => LayerHistory::default(),
            // What was given is what is kept.
            [false, true] => LayerHistory {
                next: None,
                last: Some(next),
            },
            [true, _] => self.update(&outputs, before.as_deref())?,
        };
        Ok(outputs)
    }
}
