//! Changes of a run's settings that save memory, each with what it costs. Suggestions are made of them, and what `auto` stands
//! for.

use crate::config::RunConfig;
use crate::data::Bucket;
use crate::models::{Dtype, Offload};
use crate::nn::storage::quantize::{Quantization, QuantizationSetting};
use crate::nn::vae_memory::VaeTiling;
use crate::optim::config::Name;
use crate::train::segments::ActivationPolicy;

/// Forms that weights are stored in to save memory, and what each costs.
pub const FORMS: [(&str, &str); 2] = [
    ("int8", "frozen weights off by 0.7 %, and decoded in every pass"),
    ("nf4", "frozen weights off by 9 %, and decoded in every pass"),
];

/// Part of a model whose weights are stored in few bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The transformer.
    Transformer,
    /// The text encoder.
    TextEncoder,
}

/// A change of a run's settings.
pub struct Change {
    /// Keys and values, as `--set` takes them.
    pub sets: Vec<String>,
    /// Cost of it.
    pub cost: &'static str,
    /// Buckets take the place of those in use.
    pub smaller_buckets: bool,
    apply: Box<dyn Fn(&mut RunConfig)>,
}

impl Change {
    fn new(
        sets: impl IntoIterator<Item = String>,
        cost: &'static str,
        apply: impl Fn(&mut RunConfig) + 'static,
    ) -> Self {
        Self {
            sets: sets.into_iter().collect(),
            cost,
            smaller_buckets: false,
            apply: Box::new(apply),
        }
    }

    /// Keeps the inputs of blocks alone.
    pub fn inputs(config: &RunConfig) -> Self {
        let checkpointing = (!config.train.gradient_checkpointing).then(|| "train.gradient_checkpointing=true".into());
        let policy = "train.activation_policy=inputs".into();
        Self::new(
            checkpointing.into_iter().chain([policy]),
            "every block is computed once more on the way back, about a third more time",
            |config| {
                config.train.gradient_checkpointing = true;
                config.train.activation_policy = ActivationPolicy::Inputs;
            },
        )
    }

    /// Keeps nothing of most blocks.
    pub fn offloaded_activations(config: &RunConfig) -> Self {
        let checkpointing = (!config.train.gradient_checkpointing).then(|| "train.gradient_checkpointing=true".into());
        let policy = "train.activation_policy=offloaded".into();
        Self::new(
            checkpointing.into_iter().chain([policy]),
            "as inputs, which go to a file, or from a GPU to main memory, and come again",
            |config| {
                config.train.gradient_checkpointing = true;
                config.train.activation_policy = ActivationPolicy::Offloaded;
            },
        )
    }

    /// One clip at a time, in as many micro-batches as it takes.
    pub fn single_clips(config: &RunConfig) -> Self {
        let steps = config.train.gradient_accumulation_steps * config.train.batch_size;
        Self::new(
            [
                "train.batch_size=1".into(),
                format!("train.gradient_accumulation_steps={steps}"),
            ],
            "the clips of a step come one after the other, in about the same time",
            move |config| {
                config.train.batch_size = 1;
                config.train.gradient_accumulation_steps = steps;
            },
        )
    }

    /// Frames are coded in tiles.
    pub fn tiles() -> Self {
        Self::new(
            ["precompute.vae_tiling=true".into()],
            "large frames are encoded and decoded in overlapping tiles, which changes latents slightly",
            |config| config.precompute.vae_tiling = VaeTiling::Always(true),
        )
    }

    /// Weights in bf16.
    pub fn half_precision() -> Self {
        Self::new(
            ["model.dtype=bf16".into()],
            "weights and activations in half the digits",
            |config| config.model.dtype = Dtype::Bf16,
        )
    }

    /// The optimiser's state in 8 bits.
    pub fn small_moments() -> Self {
        Self::new(
            ["optimizer.name=adamw8bit".into()],
            "the optimiser's state in 8 bits",
            |config| config.optimizer.name = Name::Adamw8bit,
        )
    }

    /// Frozen weights leave memory.
    pub fn offload(offload: Offload) -> Self {
        let (name, cost) = match offload {
            Offload::Model => ("model", "blocks are read again after each round of validation videos"),
            Offload::None | Offload::Auto | Offload::Group => (
                "group",
                "blocks are read again in every pass: little time where the disk or the bus keeps up",
            ),
        };
        Self::new([format!("model.offload={name}")], cost, move |config| {
            config.model.offload = offload;
        })
    }

    /// Weights of these parts in few bits; `form` is one of [`FORMS`].
    pub fn few_bits((form, cost): (&'static str, &'static str), parts: &[Part]) -> Self {
        let parts = parts.to_vec();
        let key = |part: &Part| match part {
            Part::Transformer => format!("model.quantization={form}"),
            Part::TextEncoder => format!("model.text_encoder_quantization={form}"),
        };
        let sets: Vec<String> = parts.iter().map(key).collect();
        let setting = QuantizationSetting::from(Quantization::from_name(form));
        Self::new(sets, cost, move |config| {
            for part in &parts {
                match part {
                    Part::Transformer => config.model.quantization = setting,
                    Part::TextEncoder => config.model.text_encoder_quantization = setting,
                }
            }
        })
    }

    /// Smaller buckets; None where they are no smaller.
    pub fn buckets(config: &RunConfig, cost: &'static str, smaller: impl Fn(&Bucket) -> Bucket) -> Option<Self> {
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
        let buckets: Vec<Vec<Bucket>> = changed.datasets.into_iter().map(|set| set.buckets).collect();
        let apply = move |config: &mut RunConfig| {
            for (dataset, buckets) in config.datasets.iter_mut().zip(&buckets) {
                dataset.buckets.clone_from(buckets);
            }
        };
        (!sets.is_empty()).then(|| Self {
            smaller_buckets: true,
            ..Self::new(sets, cost, apply)
        })
    }
}

/// Returns the settings after some changes.
pub fn applied(config: &RunConfig, changes: &[&Change]) -> RunConfig {
    let mut config = config.clone();
    changes.iter().for_each(|change| (change.apply)(&mut config));
    config
}

/// Returns the keys and values of several changes.
pub fn sets(changes: &[&Change]) -> Vec<String> {
    changes.iter().flat_map(|change| change.sets.clone()).collect()
}

/// Returns the costs of several changes in one line.
pub fn costs(changes: &[&Change]) -> String {
    let mut costs: Vec<&str> = changes.iter().map(|change| change.cost).collect();
    costs.dedup();
    costs.join("; ")
}
