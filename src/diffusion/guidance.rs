//! Guidance: scales that a request gives, and classifier-free guidance that varies over the steps.
//!
//! Classifier-free guidance (arXiv:2207.12598) runs the network with the prompt and with a negative one. A model that was
//! distilled from it is told the scale instead, as a number that it embeds; what is then left to classifier-free guidance
//! diffusers calls `true_cfg_scale`.
//!
//! `use_dynamic_cfg` of diffusers' CogVideoX pipelines:
//! w(t) = 1 + g (1 - cos(pi ((N - t) / N)^5)) / 2 with the number of steps N and the timestep t.
//!
//! [`GuidanceRule`] joins the two predictions, inside an [`Interval`] of the steps; outside of it the prompt's stands alone:
//!
//! - classifier-free: n + g (p - n)
//! - CFG-Zero* (arXiv:2503.18886): s n + g (p - s n) with s = (p . n) / |n|^2; the first steps' prediction is 0.
//! - adaptive projected guidance (arXiv:2410.02416): n + g (d_orthogonal + eta d_parallel) with d = p - n plus momentum times
//!   the d of the step before, cut to a norm, and its parts along and across p.
//!
//! The last two equal diffusers' guiders `ClassifierFreeZeroStarGuidance` and `AdaptiveProjectedGuidance`.
//!
//! The pipelines pass the timestep (999 ... 0) where the step (0 ... N) seems intended, so the argument of the cosine
//! reaches 1e12 and the scale jumps about within 1..1+g. Reproducing their seeds requires doing the same.

use std::f64::consts::PI;
use std::str::FromStr;

use candle_core::{DType, Result, Tensor};

use crate::named_settings::NamedSettings;

/// Use of a guidance scale by a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuidanceMode {
    /// `guidance_scale` is that of classifier-free guidance.
    ClassifierFree,
    /// The network embeds `guidance_scale`, and `true_cfg_scale` is that of classifier-free guidance.
    Embedded,
    /// The network was distilled for one scale, so that `guidance_scale` has no effect; `true_cfg_scale` has.
    BuiltIn,
}

/// Scales of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// Use of the scales by the checkpoint.
    pub mode: GuidanceMode,
    /// `guidance_scale`
    pub scale: f64,
    /// `true_cfg_scale`
    pub true_cfg_scale: f64,
    /// Join of the predictions with the prompt and with the negative one.
    pub rule: GuidanceRule,
    /// Steps under classifier-free guidance.
    pub interval: Interval,
}

/// Join of the predictions with the prompt and with the negative one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum GuidanceRule {
    /// Classifier-free guidance.
    #[default]
    ClassifierFree,
    /// CFG-Zero*.
    ZeroStar {
        /// First steps whose prediction is 0.
        zero_steps: usize,
    },
    /// Adaptive projected guidance.
    Projected {
        /// Factor of the part along the prediction with the prompt.
        eta: f64,
        /// Largest norm of the difference; 0: any.
        norm: f64,
        /// Factor of the difference of the step before.
        momentum: Option<f64>,
    },
}

/// Part of the steps, as shares of them: from 0, the first, to 1, the last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    from: f64,
    to: f64,
}

/// Passes of the network that a step needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeededPasses {
    /// None: the prediction is 0.
    None,
    /// With the prompt.
    Prompt,
    /// With the prompt and with the negative one.
    Both,
}

impl Guidance {
    /// Classifier-free guidance of this scale; none at 1 and below.
    pub fn classifier_free(scale: f64) -> Self {
        Self::of(GuidanceMode::ClassifierFree, scale, 1.0)
    }

    /// Scales for such a checkpoint, joined by classifier-free guidance in every step.
    pub fn of(mode: GuidanceMode, scale: f64, true_cfg_scale: f64) -> Self {
        Self {
            mode,
            scale,
            true_cfg_scale,
            rule: GuidanceRule::default(),
            interval: Interval::WHOLE,
        }
    }

    /// Returns the scale of classifier-free guidance.
    pub fn cfg_scale(&self) -> f64 {
        match self.mode {
            GuidanceMode::ClassifierFree => self.scale,
            GuidanceMode::Embedded | GuidanceMode::BuiltIn => self.true_cfg_scale,
        }
    }

    /// Returns true if the network runs with a negative prompt as well.
    pub fn needs_negative(&self) -> bool {
        self.cfg_scale() > 1.0
    }

    /// Checks that the checkpoint has a use for every scale that is given.
    ///
    /// # Errors
    /// Fails for a `true_cfg_scale` besides a `guidance_scale` that says the same, and for a rule or an interval of
    /// classifier-free guidance without any.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.mode != GuidanceMode::ClassifierFree || self.true_cfg_scale == 1.0,
            "true_cfg_scale is {}, which is for checkpoints that embed their guidance scale; this one does not, so give \
             guidance_scale",
            self.true_cfg_scale
        );
        let plain = self.rule == GuidanceRule::ClassifierFree && self.interval == Interval::WHOLE;
        anyhow::ensure!(
            plain || self.needs_negative(),
            "a rule or an interval of guidance is for classifier-free guidance, of which there is none at a scale of {}; \
             raise it, or leave them out",
            self.cfg_scale()
        );
        Ok(())
    }

    /// Returns the passes that this step of a run needs.
    pub fn passes(&self, step: usize, num_steps: usize) -> NeededPasses {
        match self.rule {
            _ if !self.needs_negative() => NeededPasses::Prompt,
            GuidanceRule::ZeroStar { zero_steps } if step < zero_steps => NeededPasses::None,
            _ if self.interval.contains(step, num_steps) => NeededPasses::Both,
            _ => NeededPasses::Prompt,
        }
    }
}

impl Interval {
    /// All steps.
    pub const WHOLE: Self = Self { from: 0.0, to: 1.0 };

    /// Returns true for a step, counted from 0, that lies in it: both ends are rounded down.
    pub fn contains(&self, step: usize, num_steps: usize) -> bool {
        let place = |share: f64| (share * num_steps as f64) as usize;
        (place(self.from)..place(self.to)).contains(&step)
    }
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let ends = text.split_once(',').map(|(from, to)| (from.parse(), to.parse()));
        match ends {
            Some((Ok(from), Ok(to))) if (0.0..=1.0).contains(&from) && (from..=1.0).contains(&to) => {
                Ok(Self { from, to })
            }
            _ => Err(format!(
                "'{text}' is no part of the steps; give FROM,TO within 0 and 1, such as 0.1,0.8"
            )),
        }
    }
}

impl FromStr for GuidanceRule {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut settings = NamedSettings::parse(text)?;
        let (rule, known) = match settings.name {
            "cfg" => (Self::ClassifierFree, ""),
            "cfg-zero-star" => {
                let zero_steps = settings.take("zero-steps")?.unwrap_or(1);
                (Self::ZeroStar { zero_steps }, "zero-steps")
            }
            "apg" => {
                let finite = |key: &str, value: Option<f64>| match value {
                    Some(value) if !value.is_finite() => Err(format!("apg: {key} must be a number, got {value}")),
                    value => Ok(value),
                };
                let eta = finite("eta", settings.take("eta")?)?.unwrap_or(1.0);
                let norm = finite("norm", settings.take("norm")?)?.unwrap_or(15.0);
                let momentum = finite("momentum", settings.take("momentum")?)?;
                if norm < 0.0 {
                    return Err(format!("apg: norm must be 0 or more, got {norm}"));
                }
                (Self::Projected { eta, norm, momentum }, "eta, norm and momentum")
            }
            other => {
                return Err(format!(
                    "'{other}' is no rule of guidance; take cfg, cfg-zero-star or apg"
                ));
            }
        };
        settings.finish(known)?;
        Ok(rule)
    }
}

/// Least square of a length that is divided by, as in torch's `normalize`.
const LEAST_SQUARE: f64 = 1e-24;

/// Join of predictions over the steps of a run.
#[derive(Debug, Clone)]
pub struct Join {
    rule: GuidanceRule,
    /// Difference of the step before, with momentum.
    before: Option<Tensor>,
}

impl Join {
    /// Join by this rule, at the start of a run.
    pub fn new(rule: GuidanceRule) -> Self {
        Self { rule, before: None }
    }

    /// Returns the guided prediction; both are (1, ...) in f32.
    pub fn join(&mut self, negative: &Tensor, positive: &Tensor, scale: f64) -> Result<Tensor> {
        match self.rule {
            GuidanceRule::ClassifierFree => negative + ((positive - negative)? * scale)?,
            GuidanceRule::ZeroStar { .. } => {
                let share = dot(positive, negative)? / (dot(negative, negative)? + 1e-8);
                let negative = (negative * share)?;
                &negative + ((positive - &negative)? * scale)?
            }
            GuidanceRule::Projected { eta, norm, momentum } => {
                let mut change = (positive - negative)?;
                if let Some(momentum) = momentum {
                    if let Some(before) = &self.before {
                        change = (change + (before * momentum)?)?;
                    }
                    self.before = Some(change.clone());
                }
                let length = dot(&change, &change)?.sqrt();
                if norm > 0.0 && length > norm {
                    change = (change * (norm / length))?;
                }
                let share = dot(&change, positive)? / dot(positive, positive)?.max(LEAST_SQUARE);
                let along = (positive * share)?;
                let update = ((change - &along)? + (along * eta)?)?;
                negative + (update * scale)?
            }
        }
    }
}

/// Returns the sum of products, summed in f64.
fn dot(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a.to_dtype(DType::F64)? * b.to_dtype(DType::F64)?)?
        .sum_all()?
        .to_scalar()
}

/// Returns the guidance scale at `timestep` of a run of `num_steps` (in video-to-video: of the remaining steps).
pub fn dynamic_scale(guidance_scale: f64, num_steps: usize, timestep: f64) -> f64 {
    let steps = num_steps as f64;
    let position = (steps - timestep) / steps;
    // `powf`, as in Python: repeated multiplication would round differently, and the cosine amplifies it.
    1.0 + guidance_scale * ((1.0 - (PI * position.powf(5.0)).cos()) / 2.0)
}
