//! `vtrain plan`: memory, disk space and time of a run, before anything is loaded.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, anyhow};
use candle_core::Device;
use indicatif::{BinaryBytes, HumanDuration};
use serde::Serialize;

use super::{Exit, Failure, OrExit, check_dataset};
use crate::config::{self, RunConfig};
use crate::data::Report;
use crate::hub;
use crate::models::{self, Family};
use crate::nn::WeightFolder;
use crate::plan::choice;
use crate::plan::suggestions::{self, Suggestion};
use crate::plan::time::{self, Time};
use crate::plan::timeline::Place;
use crate::plan::{Extent, Plan, Subject};
use crate::train::chosen::ChosenSettings;
use crate::train::memory;

/// Memory of a GPU that the driver and its libraries take.
const DRIVER_BYTES: u64 = 640 << 20;

/// Tell what a run will take: memory, disk space, time; and what would make it fit
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run file (YAML)
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Override a key of the run file (repeatable; values are YAML)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Plan for a GPU with this much memory, such as 24GB or 24GiB, in place of this machine
    #[arg(long, value_name = "SIZE")]
    device_memory: Option<Size>,
    /// Plan the transformer alone, from model.path/transformer/config.json: neither weights nor clips are needed
    #[arg(long)]
    configs_only: bool,
    /// Do not measure this machine: no times
    #[arg(long)]
    no_calibration: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `24GB`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "mb" => 1e6,
            "mib" => 1024f64.powi(2),
            "gb" => 1e9,
            "gib" => 1024f64.powi(3),
            _ => return Err(format!("'{text}' is no size such as 24GB, 24GiB or 8000MiB")),
        };
        match number.parse::<f64>() {
            Ok(number) if number > 0.0 => Ok(Self((number * factor) as u64)),
            _ => Err(format!("'{text}' is no size such as 24GB, 24GiB or 8000MiB")),
        }
    }
}

/// The plan as it is printed.
#[derive(Debug, Serialize)]
struct Printed {
    #[serde(flatten)]
    plan: Plan,
    /// Bytes that the run may take on the device; None if unknown.
    free_bytes: Option<u64>,
    /// True if it fits; None if that is unknown.
    fits: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Time>,
    /// Values that `auto` keys stand for, where something had to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    auto: Option<Auto>,
    suggestions: Vec<Suggestion>,
}

/// Settings in place of `auto`.
#[derive(Debug, Serialize)]
struct Auto {
    /// Keys and values, as `--set` takes them.
    set: Vec<String>,
    /// Costs of them.
    cost: String,
}

/// Runs `vtrain plan`: prints the table, or JSON.
///
/// # Errors
/// Fails for settings, clips and model files, all at once, with the exit code of the first kind.
pub fn run(args: Args) -> Result<(), Failure> {
    let config = RunConfig::load(&args.config, &args.set).or_exit(Exit::Usage)?;
    // A GPU that is planned for need not be here.
    let device = match args.device_memory {
        Some(_) => Device::Cpu,
        None => config.open_device().or_exit(Exit::Usage)?,
    };
    let place = place(&args, &config, &device);
    let free = match args.device_memory {
        Some(Size(bytes)) => Some(bytes.saturating_sub(DRIVER_BYTES)),
        None => memory::free(&device),
    };
    let (report, family, folder) = opened(&args, &config, (place, free))?;
    let subject = Subject::new(&config, folder, family.as_deref(), report.as_ref(), (place, free));
    let room = free.unwrap_or(u64::MAX);
    let choice = choice::choose(&config, &ChosenSettings::default(), room, &subject).or_exit(Exit::Model)?;
    let config = choice.config;
    let plan = subject.plan(&config).or_exit(Exit::Model)?;
    let fits = free.map(|free| plan.largest().1.peak_bytes <= free);
    let room = free.filter(|_| fits == Some(false));
    let calibrates = !args.no_calibration && args.device_memory.is_none();
    let time = calibrates.then(|| time::time(&subject, &config, &plan, &device));
    let printed = Printed {
        suggestions: room.map_or_else(Vec::new, |room| {
            suggestions::suggestions(&subject, &config, room, Extent::Run)
        }),
        time: time.transpose().or_exit(Exit::Model)?,
        free_bytes: free,
        fits,
        auto: (!choice.set.is_empty()).then_some(Auto {
            set: choice.set,
            cost: choice.cost,
        }),
        plan,
    };
    match args.json {
        true => super::print(&format!(
            "{}\n",
            serde_json::to_string(&printed).or_exit(Exit::Training)?
        )),
        false => super::print(&printed.table()),
    }
}

/// Returns where the run computes: on a GPU, if its memory is given and the run file does not say otherwise.
fn place(args: &Args, config: &RunConfig, device: &Device) -> Place {
    let asked = args.device_memory.is_some() && config.device != config::Device::Cpu;
    match asked || device.is_cuda() {
        true => Place::Gpu,
        false => Place::Host {
            threads: rayon::current_num_threads(),
        },
    }
}

/// Survey of the clips, the checkpoint, and its folder; the folder alone if nothing else is wanted.
type Opened = (Option<Report>, Option<Box<dyn Family>>, WeightFolder);

/// Surveys the clips and opens the checkpoint, without its weights. If the clips cannot be used, the stages are planned all the
/// same, for what is wrong with them.
fn opened(args: &Args, config: &RunConfig, machine: (Place, Option<u64>)) -> Result<Opened, Failure> {
    if args.configs_only {
        return Ok((None, None, folder(config).or_exit(Exit::Model)?));
    }
    let report = check_dataset::survey(&config.datasets, false);
    let judged = check_dataset::judge(&report);
    if judged.is_err() {
        check_dataset::tell(&report);
    }
    let family = folder(config).and_then(|folder| {
        let family = models::open(folder.clone(), config.model.family)?;
        Ok((folder, family))
    });
    match (judged, family) {
        (Ok(()), Ok((folder, family))) => Ok((Some(report), Some(family), folder)),
        (Err(data), Err(model)) => Err(both(data, &model)),
        (Err(data), Ok((folder, family))) => {
            let planned = Subject::new(config, folder, Some(&*family), None, machine).plan(config);
            Err(match planned {
                Ok(_) => data,
                Err(model) => both(data, &model),
            })
        }
        (Ok(()), Err(model)) => Err(model).or_exit(Exit::Model),
    }
}

/// Failure of clips and of a model, with the exit code of the first.
fn both(data: Failure, model: &anyhow::Error) -> Failure {
    Failure {
        exit: data.exit,
        error: anyhow!("{data}\n{model:#}"),
    }
}

/// Returns the checkpoint's folder.
fn folder(config: &RunConfig) -> anyhow::Result<WeightFolder> {
    let (path, revision, variant) = (
        &config.model.path,
        &config.model.revision,
        config.model.variant.as_deref(),
    );
    let directory = match config.model.directory() {
        Some(directory) => directory,
        None => hub::fetch::here(path, revision, variant)?
            .with_context(|| format!("model.path: {path} is not downloaded yet; a plan fetches nothing"))?,
    };
    config.model.folder(&directory)
}

impl Printed {
    fn table(&self) -> String {
        let Plan { training, .. } = &self.plan;
        let bytes = |bytes: u64| BinaryBytes(bytes).to_string();
        let mut text = format!("{:<16} {:>12} {:>12}\n", "stage", self.plan.device, "main memory");
        for (stage, memory) in self.plan.stages() {
            let line = [bytes(memory.peak_bytes), bytes(memory.host_bytes)];
            text += &format!("{:<16} {:>12} {:>12}\n", stage.name(), line[0], line[1]);
        }
        text += &format!(
            "of training      {} weights, {} adapters, {} optimiser, {} activations and gradients of {} x {}\n",
            bytes(training.weight_bytes),
            bytes(training.adapter_bytes),
            bytes(training.optimizer_bytes),
            bytes(training.activation_bytes),
            training.clips.count,
            training.clips.bucket,
        );
        text += &format!("disk             {}\n", bytes(self.plan.disk_bytes));
        if let Some(Auto { set, cost }) = &self.auto {
            text += &format!("auto             {} ({cost})\n", set.join(" "));
        }
        if let Some(Time {
            step_seconds,
            total_seconds,
            steps,
        }) = self.time
        {
            let all = HumanDuration(std::time::Duration::from_secs_f64(total_seconds));
            text += &format!("time             {step_seconds:.2} s a step, {all} for {steps}\n");
        }
        match (self.fits, self.free_bytes) {
            (Some(true), Some(free)) => text += &format!("it fits into     {}\n", bytes(free)),
            (Some(false), Some(free)) => {
                let (stage, memory) = self.plan.largest();
                let [needed, free] = [memory.peak_bytes, free].map(bytes);
                text += &format!("it does not fit  {} takes {needed} of {free}\n", stage.name());
                for suggestion in &self.suggestions {
                    text += &format!("  fits with      {suggestion}\n");
                }
            }
            _ => {}
        }
        text
    }
}
