//! Settings under which a run would fit, best first: those that change no result before those that do, and cheap ones
//! before dear ones.

use std::fmt;

use indicatif::BinaryBytes;
use serde::Serialize;

use super::changes::{self, Change, FORMS, Part};
use super::{Extent, Subject};
use crate::config::RunConfig;
use crate::data::Bucket;
use crate::models::family::{FirstFrame, Footprint};
use crate::models::{Dtype, Offload};
use crate::nn::vae_memory::VaeTiling;
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

/// Frames that a temporal patch and most autoencoders divide into, but for a first one that is alone.
const FRAME_STEP: usize = 8;

/// Returns about so many frames, which a family's clips may have.
fn fewer(frames: usize, footprint: Option<Footprint>) -> usize {
    let each = footprint.map_or(FRAME_STEP, |footprint| footprint.temporal_compression);
    let first = footprint.map_or(FirstFrame::Alone, |footprint| footprint.first_frame);
    let step = match FRAME_STEP.is_multiple_of(each.max(1)) {
        true => FRAME_STEP,
        false => each,
    };
    match first {
        FirstFrame::Alone => frames / step * step + 1,
        FirstFrame::Grouped => (frames / step * step).max(step),
    }
}

/// Side that always divides into latents and patches.
const SIDE_STEP: usize = 32;

/// Returns settings under which an extent of a run fits into so many bytes: single changes, and if none is enough, as many of
/// them as it takes, without those that are not needed.
pub fn suggestions(subject: &Subject, config: &RunConfig, room: u64, extent: Extent) -> Vec<Suggestion> {
    let changes = open(config);
    let fits = |chosen: &[&Change]| -> Option<Suggestion> {
        let peak_bytes = fitting(subject, config, chosen, (extent, room))?;
        Some(Suggestion {
            set: changes::sets(chosen),
            peak_bytes,
            cost: changes::costs(chosen),
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

/// Returns the peak after some changes; None if it does not fit, or such a run cannot be planned.
fn fitting(subject: &Subject, config: &RunConfig, chosen: &[&Change], (extent, room): (Extent, u64)) -> Option<u64> {
    let config = changes::applied(config, chosen);
    let buckets = config.datasets.iter().flat_map(|set| set.buckets.clone());
    let subject = Subject {
        folder: subject.folder.clone(),
        findings: subject.findings.clone(),
        // Smaller buckets take the place of those in use.
        buckets: match chosen.iter().any(|change| change.smaller_buckets) {
            true => buckets.map(|bucket| (bucket, 0)).collect(),
            false => subject.buckets.clone(),
        },
        ..*subject
    };
    if subject.exceeds(&config, extent, room).ok()? {
        return None;
    }
    let peak = extent.peak(&subject.plan(&config).ok()?);
    (peak <= room).then_some(peak)
}

/// Returns the changes that this run leaves open, best first.
fn open(config: &RunConfig) -> Vec<Change> {
    let (model, train) = (&config.model, &config.train);
    let mut all = Vec::new();
    let keeps_inputs = [ActivationPolicy::Inputs, ActivationPolicy::Offloaded].contains(&train.activation_policy);
    if !train.gradient_checkpointing || !keeps_inputs {
        all.push(Change::inputs(config));
    }
    if train.batch_size > 1 {
        all.push(Change::single_clips(config));
    }
    if config.precompute.vae_tiling == VaeTiling::Always(false) {
        all.push(Change::tiles());
    }
    if model.dtype == Dtype::F32 {
        all.push(Change::half_precision());
    }
    if config.optimizer.name != Name::Adamw8bit {
        all.push(Change::small_moments());
    }
    if !train.gradient_checkpointing || train.activation_policy != ActivationPolicy::Offloaded {
        all.push(Change::offloaded_activations(config));
    }
    if model.offload == Offload::None {
        all.push(Change::offload(Offload::Group));
    }
    if model.quantization.form().is_none() {
        all.extend(FORMS.map(|form| Change::few_bits(form, &[Part::Transformer, Part::TextEncoder])));
    }
    let footprint = config.model.footprint();
    for divisor in [2, 4] {
        let halve = |bucket: &Bucket| Bucket {
            frames: fewer(bucket.frames / divisor, footprint).min(bucket.frames),
            ..*bucket
        };
        all.extend(Change::buckets(
            config,
            "fewer frames of each clip are learnt from",
            halve,
        ));
    }
    let half = |bucket: &Bucket| Bucket {
        frames: bucket.frames,
        height: (bucket.height / 2).next_multiple_of(SIDE_STEP),
        width: (bucket.width / 2).next_multiple_of(SIDE_STEP),
    };
    all.extend(Change::buckets(
        config,
        "half the rows and columns: less detail is learnt",
        half,
    ));
    all
}
