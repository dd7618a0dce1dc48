//! Configuration of a run from its YAML file: every owner's `Config` put together.
//!
//! Loading reports all problems at once. The file is parsed into a located tree ([`yaml`]), `--set` overrides are
//! applied to it, and the tree is handed to serde. serde stops at its first error, so that error is recorded, its entry
//! is removed from the tree, and serde tries again until it succeeds; then each owner checks its values. Messages carry
//! file, line and dotted path.

use std::fmt;
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
mod unknown;
pub mod yaml;

pub use device::Device;
use yaml::{Node, Origin, Step};

/// Upper limit for a settings file.
const MAX_BYTES: u64 = 1 << 20;

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

/// A problem of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File and line, or the `--set` option.
    pub place: String,
    /// Dotted path, empty for the document as a whole.
    pub path: String,
    /// Description of the problem, and what to do.
    pub message: String,
}

/// All problems of a configuration, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidConfig(pub Vec<Problem>);

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}: ", problem.place)?;
            if !problem.path.is_empty() {
                write!(f, "{}: ", problem.path)?;
            }
            write!(f, "{}", problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for InvalidConfig {}

impl RunConfig {
    /// Reads, overrides, checks and resolves a run file.
    ///
    /// `sets` are `a.b=value` texts; the values are YAML.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, InvalidConfig> {
        let text = read(path).map_err(|message| InvalidConfig::whole(path, message))?;
        // An absolute folder: paths written into `output_dir` must mean the same from anywhere.
        let folder = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let folder = folder.parent().unwrap_or(Path::new("/"));
        Self::parse(&text, path, folder, sets)
    }

    /// Same as [`load`](Self::load), from the text of a file called `name` whose paths are relative to `folder`.
    pub fn parse(text: &str, name: &Path, folder: &Path, sets: &[String]) -> Result<Self, InvalidConfig> {
        let mut found = Found {
            name,
            sets,
            problems: Vec::new(),
        };
        let mut tree = match Node::parse(text) {
            Ok(tree) => tree,
            Err(error) => {
                found.at(Origin::Line(error.line), &[], error.message);
                return Err(InvalidConfig(found.problems.into_iter().map(|(_, p)| p).collect()));
            }
        };
        for (index, set) in sets.iter().enumerate() {
            if let Err(message) = override_with(&mut tree, index, set) {
                found.at(Origin::Set(index), &[], message);
            }
        }
        let (mut config, pruned) = deserialize(&tree, &mut found);
        for (path, message) in Problems::of(|problems| config.check(problems)) {
            let steps = yaml::parse_path(&path).unwrap_or_default();
            // Values that could not be read are reported already; their defaults are not.
            if !pruned
                .iter()
                .any(|gone| steps.starts_with(gone) || gone.starts_with(&steps))
            {
                found.at(tree.nearest(&steps).origin, &steps, message);
            }
        }
        if found.problems.is_empty() {
            config.resolve(folder);
            Ok(config)
        } else {
            found.problems.sort_by_key(|(order, _)| *order);
            Err(InvalidConfig(found.problems.into_iter().map(|(_, p)| p).collect()))
        }
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

impl InvalidConfig {
    fn whole(path: &Path, message: String) -> Self {
        Self(vec![Problem {
            place: path.display().to_string(),
            path: String::new(),
            message,
        }])
    }
}

fn read(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path)
        .map_err(|error| format!("cannot be read: {error}"))?
        .len();
    if size > MAX_BYTES {
        return Err(format!("is {size} bytes long; a run file has at most {MAX_BYTES}"));
    }
    let bytes = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1;
        format!("line {line} is not UTF-8; save the file as UTF-8")
    })
}

/// Applies one `a.b=value` to the tree.
fn override_with(tree: &mut Node, index: usize, set: &str) -> Result<(), String> {
    let (path, value) = set.split_once('=').ok_or("is not of the form a.b=value")?;
    let path = yaml::parse_path(path.trim())?;
    let mut value = Node::parse(value).map_err(|error| format!("the value is not YAML: {}", error.message))?;
    value.stamp(Origin::Set(index));
    tree.set(&path, value)
}

/// Deserialises repeatedly: each error is recorded and its entry removed, until the rest can be read.
fn deserialize(tree: &Node, found: &mut Found) -> (RunConfig, Vec<Vec<Step>>) {
    let mut rest = tree.clone();
    let mut pruned = Vec::new();
    loop {
        let json = match rest.to_json() {
            serde_json::Value::Null => serde_json::Value::Object(Default::default()),
            json => json,
        };
        let error = match serde_path_to_error::deserialize::<_, RunConfig>(json) {
            Ok(config) => return (config, pruned),
            Err(error) => error,
        };
        let mut path = steps(error.path());
        let mut message = error.inner().to_string();
        if let Some((key, hint)) = unknown::explain(&message) {
            if path.last() != Some(&Step::Key(key.clone())) {
                path.push(Step::Key(key));
            }
            message = hint;
        }
        found.at(tree.nearest(&path).origin, &path, unknown::in_plain_words(&message));
        match rest.prune(&path) {
            Some(gone) => pruned.push(gone),
            // Nothing is left to remove: the document itself is of the wrong kind.
            None => return (RunConfig::default(), vec![Vec::new()]),
        }
    }
}

fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// Problems found so far, each with its position in reading order.
struct Found<'a> {
    name: &'a Path,
    sets: &'a [String],
    problems: Vec<((bool, u64), Problem)>,
}

impl Found<'_> {
    fn at(&mut self, origin: Origin, path: &[Step], message: String) {
        let (order, place) = match origin {
            Origin::Line(0) => ((false, 0), self.name.display().to_string()),
            Origin::Line(line) => ((false, line), format!("{}:{line}", self.name.display())),
            Origin::Set(index) => ((true, index as u64), format!("--set {}", self.sets[index])),
        };
        self.problems.push((
            order,
            Problem {
                place,
                path: yaml::show_path(path),
                message,
            },
        ));
    }
}
