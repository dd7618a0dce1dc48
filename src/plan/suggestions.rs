//! Settings under which a run would fit, best first: those that change no result before those that do, and cheap ones
//! before dear ones.

use std::fmt;

use indicatif::BinaryBytes;
use serde::Serialize;

use super::{Plan, Subject};
use crate::config::RunConfig;
use crate::data::Bucket;
use crate::models::{Dtype, Offload};
use crate::nn::storage::quantize::Quantization;
use crate::optim::config::Name;
use crate::train::segments::ActivationPolicy;

/// Settings that make a run fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    /// Keys and values, as `--set` takes them.
    pub set: Vec<String>,
    /// Highest peak of the run with them.
    pub peak_bytes: u64,
    /// Cost of them.
    pub cost: String,
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sets: Vec<String> = self.set.iter().map(|set| format!("--set {set}")).collect();
        write!(
            f,
            "{} ({}: {})",
            sets.join(" "),
            BinaryBytes(self.peak_bytes),
            self.cost
        )
    }
}

/// A change of a run's settings.
struct Change {
    sets: Vec<String>,
    cost: &'static str,
    apply: Box<dyn Fn(&mut RunConfig)>,
}

/// Frames that a temporal patch and an autoencoder always divide into, and one.
const FRAME_STEP: usize = 8;

/// Side that always divides into latents and patches.
const SIDE_STEP: usize = 32;

/// Returns settings under which a run's peak, of those that `peak` reads in its plan, fits into so many bytes: single changes, and if none is enough, as many of them as
/// it takes, without those that are not needed.
pub fn suggestions(subject: &Subject, config: &RunConfig, room: u64, peak: fn(&Plan) -> u64) -> Vec<Suggestion> {
    let changes = changes(config);
    let fits = |chosen: &[&Change]| -> Option<Suggestion> {
        let peak_bytes = peak(&planned(subject, config, chosen)?);
        (peak_bytes <= room).then(|| Suggestion {
            set: chosen.iter().flat_map(|change| change.sets.clone()).collect(),
            peak_bytes,
            cost: chosen.iter().map(|change| change.cost).collect::<Vec<_>>().join("; "),
        })
    };
    let single: Vec<Suggestion> = changes.iter().filter_map(|change| fits(&[change])).collect();
    if !single.is_empty() {
        return single;
    }
    let mut chosen: Vec<&Change> = Vec::new();
    for change in &changes {
        chosen.push(change);
        if let Some(suggestion) = fits(&chosen) {
            return vec![without_idle(&mut chosen, fits).unwrap_or(suggestion)];
        }
    }
    Vec::new()
}

/// Leaves out changes, the dearest first, without which the run fits as well.
fn without_idle(chosen: &mut Vec<&Change>, fits: impl Fn(&[&Change]) -> Option<Suggestion>) -> Option<Suggestion> {
    let mut best = None;
    for place in (0..chosen.len()).rev() {
        let without: Vec<&Change> = chosen
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != place)
            .map(|(_, c)| *c)
            .collect();
        if let Some(suggestion) = fits(&without) {
            *chosen = without;
            best = Some(suggestion);
        }
    }
    best
}

/// Returns the plan after some changes; None if such a run cannot be planned.
fn planned(subject: &Subject, config: &RunConfig, chosen: &[&Change]) -> Option<Plan> {
    let mut config = config.clone();
    chosen.iter().for_each(|change| (change.apply)(&mut config));
    let buckets = config.datasets.iter().flat_map(|set| set.buckets.clone());
    let subject = Subject {
        folder: subject.folder.clone(),
        // Smaller buckets take the place of those in use.
        buckets: match chosen
            .iter()
            .any(|change| change.sets.iter().any(|set| set.contains("buckets")))
        {
            true => buckets.map(|bucket| (bucket, 0)).collect(),
            false => subject.buckets.clone(),
        },
        ..*subject
    };
    subject.plan(&config).ok()
}

/// Returns the changes that this run leaves open, best first.
fn changes(config: &RunConfig) -> Vec<Change> {
    let mut all = Vec::new();
    let mut push = |sets: &[String], cost, apply: Box<dyn Fn(&mut RunConfig)>| {
        all.push(Change {
            sets: sets.to_vec(),
            cost,
            apply,
        });
    };
    if !config.train.gradient_checkpointing || config.train.activation_policy != ActivationPolicy::Inputs {
        push(
            &[
                "train.gradient_checkpointing=true".into(),
                "train.activation_policy=inputs".into(),
            ],
            "every block is computed once more on the way back, about a third more time",
            Box::new(|config| {
                config.train.gradient_checkpointing = true;
                config.train.activation_policy = ActivationPolicy::Inputs;
            }),
        );
    }
    if config.train.batch_size > 1 {
        let steps = config.train.gradient_accumulation_steps * config.train.batch_size;
        push(
            &[
                "train.batch_size=1".into(),
                format!("train.gradient_accumulation_steps={steps}"),
            ],
            "the clips of a step come one after the other, in about the same time",
            Box::new(move |config| {
                config.train.batch_size = 1;
                config.train.gradient_accumulation_steps = steps;
            }),
        );
    }
    if config.model.dtype == Dtype::F32 {
        push(
            &["model.dtype=bf16".into()],
            "weights and activations in half the digits",
            Box::new(|config| config.model.dtype = Dtype::Bf16),
        );
    }
    if config.optimizer.name != Name::Adamw8bit {
        push(
            &["optimizer.name=adamw8bit".into()],
            "the optimiser's state in 8 bits",
            Box::new(|config| config.optimizer.name = Name::Adamw8bit),
        );
    }
    if config.model.offload == Offload::None {
        push(
            &["model.offload=group".into()],
            "blocks are read again in every pass: little time where the disk or the bus keeps up",
            Box::new(|config| config.model.offload = Offload::Group),
        );
    }
    for (name, cost) in [
        ("int8", "frozen weights off by 0.7 %, and decoded in every pass"),
        ("nf4", "frozen weights off by 9 %, and decoded in every pass"),
    ] {
        if config.model.quantization.is_none() {
            push(
                &[
                    format!("model.quantization={name}"),
                    format!("model.text_encoder_quantization={name}"),
                ],
                cost,
                Box::new(move |config| {
                    config.model.quantization = Quantization::from_name(name);
                    config.model.text_encoder_quantization = Quantization::from_name(name);
                }),
            );
        }
    }
    for divisor in [2, 4] {
        let halve = move |bucket: &Bucket| Bucket {
            frames: (bucket.frames / divisor / FRAME_STEP * FRAME_STEP + 1).min(bucket.frames),
            ..*bucket
        };
        push_buckets(config, &mut push, "fewer frames of each clip are learnt from", halve);
    }
    push_buckets(
        config,
        &mut push,
        "half the rows and columns: less detail is learnt",
        |bucket| Bucket {
            frames: bucket.frames,
            height: (bucket.height / 2).next_multiple_of(SIDE_STEP),
            width: (bucket.width / 2).next_multiple_of(SIDE_STEP),
        },
    );
    all
}

/// Adds smaller buckets, where they are any smaller.
fn push_buckets(
    config: &RunConfig,
    push: &mut impl FnMut(&[String], &'static str, Box<dyn Fn(&mut RunConfig)>),
    cost: &'static str,
    smaller: impl Fn(&Bucket) -> Bucket + 'static,
) {
    let mut changed = config.clone();
    let mut sets = Vec::new();
    for (index, dataset) in changed.datasets.iter_mut().enumerate() {
        let before = dataset.buckets.clone();
        dataset.buckets.iter_mut().for_each(|bucket| *bucket = smaller(bucket));
        dataset.buckets.dedup();
        if dataset.buckets != before {
            let buckets: Vec<String> = dataset.buckets.iter().map(ToString::to_string).collect();
            sets.push(format!(
                "datasets.{index}.buckets=[{}]",
                buckets.join(",").replace(' ', "")
            ));
        }
    }
    if !sets.is_empty() {
        let buckets: Vec<Vec<Bucket>> = changed.datasets.into_iter().map(|set| set.buckets).collect();
        let apply = move |config: &mut RunConfig| {
            for (dataset, buckets) in config.datasets.iter_mut().zip(&buckets) {
                dataset.buckets.clone_from(buckets);
            }
        };
        push(&sets, cost, Box::new(apply));
    }
}
