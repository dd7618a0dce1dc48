//! Configuration of a run from its YAML file: every owner's `Config` put together.
//!
//! Loading reports all problems at once. The file is parsed into a located tree ([`yaml`]), `--set` overrides are
//! applied to it, and it is read ([`located`]): each owner checks its values. Messages carry file, line and dotted path.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{data, diffusion, distributed, hub, lora, models, ops, optim, train};

use crate::models::{Offload, Sharding};
use crate::problems::Problems;
use crate::run_dir::RunDir;
use crate::sample::step_cache;
use crate::train::segments::ActivationPolicy;

mod chosen;
mod device;
mod hyperparameters;
pub mod located;
mod unknown;
pub mod yaml;

pub use device::Device;
pub use located::{InvalidConfig, Problem};

use located::Found;
use yaml::{Node, Origin};

/// Settings of a training run. Relative paths are resolved against the folder of the file that holds them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "vtrain run")]
pub struct RunConfig {
    /// Folder of checkpoints, logs, validation videos and the finished adapter.
    pub output_dir: PathBuf,
    /// Seed of every draw: order of clips, noise, timesteps, adapter initialisation.
    pub seed: u64,
    /// `auto` takes the first GPU if there is one, else the CPU.
    pub device: Device,
    /// Run all sums in a fixed order, so that the same run gives the same bits again on the same GPU: its backward pass
    /// takes longer. The CPU always does so.
    pub deterministic: bool,
    /// Base model and its number format.
    pub model: models::Config,
    /// One or more folders of clips and captions.
    pub datasets: Vec<data::dataset::Config>,
    /// Cache of encoded clips and captions.
    pub precompute: data::cache::Config,
    /// Adapters that are trained.
    pub lora: lora::Config,
    /// Steps, batches and memory.
    pub train: train::config::Config,
    /// Timesteps that are trained on, and their weights.
    pub diffusion: diffusion::timesteps::Config,
    /// Optimiser of the adapters.
    pub optimizer: optim::adamw::Config,
    /// Schedule of the learning rate.
    pub lr_scheduler: optim::lr::Config,
    /// Checkpoints of the run.
    pub checkpoint: train::checkpoint::Config,
    /// Videos made while training.
    pub validation: train::validate::Config,
    /// Metrics and how often they are logged.
    pub tracking: train::metrics::Config,
    /// Upload of the finished adapter.
    pub hub: hub::push::Config,
    /// Communication between processes.
    pub dist: distributed::Config,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            output_dir: "runs/vtrain".into(),
            seed: 42,
            device: Device::Auto,
            deterministic: false,
            model: Default::default(),
            datasets: Vec::new(),
            precompute: Default::default(),
            lora: Default::default(),
            train: Default::default(),
            diffusion: Default::default(),
            optimizer: Default::default(),
            lr_scheduler: Default::default(),
            checkpoint: Default::default(),
            validation: Default::default(),
            tracking: Default::default(),
            hub: Default::default(),
            dist: Default::default(),
        }
    }
}

impl RunConfig {
    /// Reads, overrides, checks and resolves a run file.
    ///
    /// `sets` are `a.b=value` texts; the values are YAML.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, InvalidConfig> {
        let text = located::read_text(path, "a run file")?;
        // An absolute folder: paths written into `output_dir` must mean the same from anywhere.
        let folder = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let folder = folder.parent().unwrap_or(Path::new("/"));
        Self::parse(&text, path, folder, sets)
    }

    /// Same as [`load`](Self::load), from the text of a file called `name` whose paths are relative to `folder`.
    pub fn parse(text: &str, name: &Path, folder: &Path, sets: &[String]) -> Result<Self, InvalidConfig> {
        let mut found = Found::new(name, sets);
        let mut tree = match Node::parse(text) {
            Ok(tree) => tree,
            Err(error) => {
                found.at(Origin::Line(error.line), &[], error.message);
                return found.judge(Self::default());
            }
        };
        for (index, set) in sets.iter().enumerate() {
            if let Err(message) = override_with(&mut tree, index, set) {
                found.at(Origin::Set(index), &[], message);
            }
        }
        let config = found.read(&tree, Self::check);
        let mut config = found.judge(config)?;
        config.resolve(folder);
        Ok(config)
    }

    /// The folder that the run writes to.
    pub fn run_dir(&self) -> RunDir {
        RunDir::new(&self.output_dir)
    }

    /// The device of the run, on which this process from now on computes as `deterministic` says.
    ///
    /// # Errors
    /// Same as [`Device::open`].
    pub fn open_device(&self) -> anyhow::Result<candle_core::Device> {
        ops::determinism::require(self.deterministic);
        self.device.open()
    }

    /// Returns the resolved configuration as YAML, itself a valid run file.
    pub fn to_yaml(&self) -> anyhow::Result<String> {
        Ok(serde_saphyr::to_string(self)?)
    }

    /// Returns the JSON Schema that editors check run files against.
    pub fn schema() -> String {
        let schema = schemars::schema_for!(RunConfig);
        let mut text = serde_json::to_string_pretty(&schema).expect("a schema is plain JSON");
        text.push('\n');
        text
    }

    /// Checks for values that parse but make no sense, by dotted path.
    fn check(&self, problems: &mut Problems) {
        for (i, dataset) in self.datasets.iter().enumerate() {
            problems.section(format!("datasets[{i}]"), |problems| dataset.check(problems));
        }
        problems.section("model", |problems| self.model.check(problems));
        if self.datasets.is_empty() {
            problems.push("datasets", "is required: a list with at least one {path: FOLDER}");
        }
        problems.section("lora", |problems| self.lora.check(problems));
        problems.section("train", |problems| self.train.check(problems));
        problems.section("diffusion", |problems| self.diffusion.check(problems));
        problems.section("optimizer", |problems| self.optimizer.check(problems));
        problems.section("lr_scheduler", |problems| self.lr_scheduler.check(problems));
        problems.section("checkpoint", |problems| self.checkpoint.check(problems));
        problems.section("validation", |problems| self.validation.check(problems));
        problems.failed("hub.repo", self.hub.check_repo());
        problems.failed("dist.timeout", self.dist.check_timeout());
        let keeps_all = !self.train.gradient_checkpointing || self.train.activation_policy == ActivationPolicy::All;
        let lent = [
            ("sharding", "full", self.model.sharding == Sharding::Full),
            ("offload", "group", self.model.offload == Offload::Group),
        ];
        for (key, value, _) in lent.into_iter().filter(|(_, _, is_set)| *is_set && keeps_all) {
            let message = format!(
                "{value} needs train.gradient_checkpointing, and a train.activation_policy other than all: what is kept for the way \
                 back would hold every block whole"
            );
            problems.push(format!("model.{key}"), message);
        }
        if self.output_dir.as_os_str().is_empty() {
            problems.push("output_dir", "must not be empty");
        }
    }

    fn resolve(&mut self, folder: &Path) {
        let absolute = |path: &mut PathBuf| *path = crate::paths::normalize(&folder.join(&*path));
        absolute(&mut self.output_dir);
        for dataset in &mut self.datasets {
            absolute(&mut dataset.path);
        }
        if let Some(dir) = &mut self.precompute.dir {
            absolute(dir);
        }
        if let Some(lora::Init::File(init)) = &mut self.lora.init {
            absolute(init);
        }
        for file in &mut self.lora.frozen {
            absolute(&mut file.path);
        }
        if let step_cache::Config::MagCache { ratios, .. } = &mut self.validation.cache {
            absolute(ratios);
        }
        for prompt in &mut self.validation.prompts {
            if let Some(image) = &mut prompt.image {
                absolute(image);
            }
        }
        self.model.resolve(folder);
    }
}

/// Applies one `a.b=value` to the tree.
fn override_with(tree: &mut Node, index: usize, set: &str) -> Result<(), String> {
    let (path, value) = set.split_once('=').ok_or("is not of the form a.b=value")?;
    let path = yaml::parse_path(path.trim())?;
    let mut value = Node::parse(value).map_err(|error| format!("the value is not YAML: {}", error.message))?;
    value.stamp(Origin::Set(index));
    tree.set(&path, value)
}
