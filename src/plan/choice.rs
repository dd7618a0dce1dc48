//! Choice of what `auto` stands for: the cheapest settings with which a run fits in memory.
//!
//! In the order of their costs: nothing is changed; less is kept for the way back (`train.activation_policy`); frozen weights
//! leave memory (`model.offload`); they are stored in few bits (`model.quantization`,
//! `model.text_encoder_quantization`), which alone changes the numbers of a run, and comes last. The first combination under
//! which every stage fits is taken. If there is none, it is the one under which most stages fit; of several, the one with the
//! lowest peaks of those that do not.

use indicatif::BinaryBytes;

use super::Stage;
use super::changes::{self, Change, FORMS, Part};
use super::training::Memory;
use crate::config::RunConfig;
use crate::models::Offload;
use crate::nn::storage::quantize::QuantizationSetting;
use crate::train::chosen::ChosenSettings;
use crate::train::segments::ActivationPolicy;

/// Part of the memory that is left free, for what a plan is too low by: a tenth of the rest.
const LEFT: u64 = 11;

/// Settings in place of `auto`.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The run's settings, without any `auto` that is left to the plan.
    pub config: RunConfig,
    /// Keys that had to change, and their values, as `--set` takes them.
    pub set: Vec<String>,
    /// Costs of them.
    pub cost: String,
    /// True if every stage fits.
    pub fits: bool,
}

impl Choice {
    /// Returns what was chosen for `whom` with so many bytes free, and why, in one line.
    pub fn reason(&self, whom: &str, room: u64) -> String {
        let fits = |fits| {
            let (not, room) = (if fits { "" } else { "not " }, BinaryBytes(room));
            format!("{whom} is planned {not}to fit into the {room} that are free")
        };
        let Self { cost, .. } = self;
        match (&self.set[..], self.fits) {
            ([], true) => format!("auto: nothing changes, since {}", fits(true)),
            ([], false) => format!("auto: nothing changes, since it would not help; {}", fits(false)),
            (set, true) => format!("auto: {} ({cost}): without, {}", set.join(", "), fits(false)),
            (set, false) => format!("auto: {} ({cost}): also with it, {}", set.join(", "), fits(false)),
        }
    }
}

/// Peaks of the stages of a run with some settings.
pub type Stages = Vec<(Stage, Memory)>;

/// A run that has not settled on its settings.
pub trait Candidates {
    /// Returns the peaks of the stages with some settings.
    ///
    /// # Errors
    /// Fails for a run that cannot be planned.
    fn stages(&self, config: &RunConfig) -> anyhow::Result<Stages>;

    /// True if a stage is certain not to fit into so many bytes, which may be known sooner than its peak.
    ///
    /// # Errors
    /// Same as [`stages`](Self::stages).
    fn exceeds(&self, config: &RunConfig, room: u64) -> anyhow::Result<bool>;
}

impl<F: Fn(&RunConfig) -> anyhow::Result<Stages>> Candidates for F {
    fn stages(&self, config: &RunConfig) -> anyhow::Result<Stages> {
        self(config)
    }

    fn exceeds(&self, config: &RunConfig, room: u64) -> anyhow::Result<bool> {
        Ok(!Fit::new(&self(config)?, room).fits())
    }
}

/// Chooses settings with which a run fits into `room` bytes. What was `recorded` of a run that resumes stays.
///
/// # Errors
/// Fails if the run cannot be planned as it is.
pub fn choose(
    config: &RunConfig,
    recorded: &ChosenSettings,
    room: u64,
    candidates: &impl Candidates,
) -> anyhow::Result<Choice> {
    let room = room - room / LEFT;
    let axes = Axes::open(config, recorded);
    let config = unchanged(&config.with_chosen(recorded));
    let all: Vec<Vec<&Change>> = axes.combinations().collect();
    let found = match first_that_fits(&config, &all, room, candidates)? {
        Some(fitting) => (Fit::default(), fitting.clone()),
        None => nearest(&config, &all, room, candidates)?,
    };
    let (fit, changes) = found;
    Ok(Choice {
        config: changes::applied(&config, &changes),
        set: changes::sets(&changes),
        cost: changes::costs(&changes),
        fits: fit.fits(),
    })
}

/// Returns the first combination with which every stage fits.
fn first_that_fits<'a, 'c>(
    config: &RunConfig,
    combinations: &'a [Vec<&'c Change>],
    room: u64,
    candidates: &impl Candidates,
) -> anyhow::Result<Option<&'a Vec<&'c Change>>> {
    for (index, changes) in combinations.iter().enumerate() {
        let changed = changes::applied(config, changes);
        // What is wrong is said by the plan, for all stages at once.
        if candidates.exceeds(&changed, room).unwrap_or(false) {
            continue;
        }
        let fits = candidates
            .stages(&changed)
            .map(|planned| Fit::new(&planned, room).fits());
        match fits {
            Ok(true) => return Ok(Some(changes)),
            Err(error) if index == 0 => return Err(error),
            Ok(false) | Err(_) => {}
        }
    }
    Ok(None)
}

/// Returns the combination that is nearest to fitting.
fn nearest<'c>(
    config: &RunConfig,
    combinations: &[Vec<&'c Change>],
    room: u64,
    candidates: &impl Candidates,
) -> anyhow::Result<(Fit, Vec<&'c Change>)> {
    let mut best: Option<(Fit, &Vec<&Change>)> = None;
    for changes in combinations {
        let planned = match (candidates.stages(&changes::applied(config, changes)), &best) {
            (Ok(planned), _) => planned,
            (Err(error), None) => return Err(error),
            (Err(_), Some(_)) => continue,
        };
        let fit = Fit::new(&planned, room);
        if best.as_ref().is_none_or(|(best, _)| fit.is_better_than(best)) {
            best = Some((fit, changes));
        }
    }
    Ok(best.map_or_else(Default::default, |(fit, changes)| (fit, changes.clone())))
}

/// Returns settings in which nothing had to change for what is left to the plan.
pub fn unchanged(config: &RunConfig) -> RunConfig {
    config.with_chosen(&ChosenSettings {
        offload: Some(Offload::None),
        quantization: Some(QuantizationSetting::None),
        text_encoder_quantization: Some(QuantizationSetting::None),
        activation_policy: Some(ActivationPolicy::Auto),
    })
}

/// Stages that do not fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Fit {
    /// Number of them.
    stages: usize,
    /// Sum of their peaks.
    peaks: u64,
}

impl Fit {
    fn new(stages: &Stages, room: u64) -> Self {
        let peaks = stages.iter().map(|(_, memory)| memory.peak_bytes);
        let beyond: Vec<u64> = peaks.filter(|peak| *peak > room).collect();
        Self {
            stages: beyond.len(),
            peaks: beyond.into_iter().fold(0, u64::saturating_add),
        }
    }

    fn fits(self) -> bool {
        self.stages == 0
    }

    fn is_better_than(self, other: &Self) -> bool {
        (self.stages, self.peaks) < (other.stages, other.peaks)
    }
}

/// Changes by what they concern, the cheapest first; no two of an axis go together.
struct Axes {
    transformer: Vec<Change>,
    text_encoder: Vec<Change>,
    offload: Vec<Change>,
    activations: Vec<Change>,
}

impl Axes {
    /// Returns the changes of the keys that are `auto`, and not recorded.
    fn open(config: &RunConfig, recorded: &ChosenSettings) -> Self {
        let (model, train) = (&config.model, &config.train);
        let forms = |setting, recorded: Option<_>, part| match (setting, recorded) {
            (QuantizationSetting::Auto, None) => FORMS.map(|form| Change::few_bits(form, &[part])).into(),
            _ => Vec::new(),
        };
        let keeps_all = !train.gradient_checkpointing || train.activation_policy == ActivationPolicy::All;
        let offload = match (model.offload, recorded.offload) {
            (Offload::Auto, None) => [
                (!config.validation.prompts.is_empty()).then_some(Offload::Model),
                (!keeps_all).then_some(Offload::Group),
            ],
            _ => [None, None],
        };
        let activations = config.leaves_activations_to_plan() && recorded.activation_policy.is_none();
        Self {
            transformer: forms(model.quantization, recorded.quantization, Part::Transformer),
            text_encoder: forms(
                model.text_encoder_quantization,
                recorded.text_encoder_quantization,
                Part::TextEncoder,
            ),
            offload: offload.into_iter().flatten().map(Change::offload).collect(),
            activations: match activations {
                true => vec![Change::inputs(config), Change::offloaded_activations(config)],
                false => Vec::new(),
            },
        }
    }

    /// Returns all combinations, the cheapest first.
    fn combinations(&self) -> impl Iterator<Item = Vec<&Change>> {
        let axis = |changes| std::iter::once(None).chain(<&[Change]>::into_iter(changes).map(Some));
        axis(&self.transformer[..]).flat_map(move |transformer| {
            axis(&self.text_encoder[..]).flat_map(move |text_encoder| {
                axis(&self.offload[..]).flat_map(move |offload| {
                    axis(&self.activations[..]).map(move |activations| {
                        let all = [activations, offload, transformer, text_encoder];
                        all.into_iter().flatten().collect()
                    })
                })
            })
        })
    }
}
