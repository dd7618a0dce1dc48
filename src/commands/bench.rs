//! `vtrain bench`: what a training step costs on this machine, on made-up clips of a run's bucket.

mod profile;

use std::cell::RefCell;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Device, Tensor, Var};
use serde::Serialize;

use super::{Exit, Failure, OrExit};
use crate::config::RunConfig;
use crate::data::Bucket;
use crate::diffusion::objective;
use crate::hub;
use crate::lora::trainable::Trainable;
use crate::models::bare::{self, Bare, Work};
use crate::models::{self, rooms};
use crate::nn::Weights;
use crate::nn::weights::Planter;
use crate::ops::attention::way::{self, Way};
use crate::ops::clock::Mark;
use crate::ops::profile::{Level, span};
use crate::optim::adamw::AdamW;
use crate::optim::clip;
use crate::rng::Rng;
use crate::train::memory;
use crate::train::segments::{Keep, Policy, forward_backward};
use profile::Profile;

/// Measure a training step: time, where it goes, memory
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run file (YAML)
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Override a key of the run file (repeatable; values are YAML)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Make the weights up: nothing but model.path/transformer/config.json is needed
    #[arg(long)]
    random_weights: bool,
    /// Frames, height and width, in place of the first bucket of the first data set
    #[arg(long, value_name = "F,H,W")]
    bucket: Option<Size>,
    /// Steps that are measured, after one that is not
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Only the way forward, without adapters: a sampling step
    #[arg(long)]
    forward: bool,
    /// Also tell what each op and kernel takes, in two further steps
    #[arg(long)]
    profile: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `17,256,384`
#[derive(Debug, Clone, Copy)]
struct Size(Bucket);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
        match numbers.as_deref() {
            Ok([frames, height, width]) if *frames > 0 && *height > 0 && *width > 0 => {
                Ok(Self(Bucket::from([*frames, *height, *width])))
            }
            _ => Err(format!("'{text}' is not of the form FRAMES,HEIGHT,WIDTH")),
        }
    }
}

/// What was measured. Times in seconds.
#[derive(Debug, Serialize)]
struct Measured {
    device: &'static str,
    bucket: Bucket,
    batch_size: usize,
    dtype: models::Dtype,
    /// What `train.keep` is, as long as there is checkpointing.
    keep: Policy,
    /// By which kernels attention ran.
    attention: Vec<Way>,
    threads: usize,
    params: usize,
    trainable: usize,
    tokens: usize,
    #[serde(flatten)]
    pace: Pace,
    /// The best that this machine's product of matrices reached, a second.
    matmul_flops_per_second: f64,
    /// The most that was in use at once: resident memory of the process; on a GPU, what tensors took of its pool.
    peak_memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Profile>,
}

/// How long steps took.
#[derive(Debug, Serialize)]
struct Pace {
    step_seconds_median: f64,
    step_seconds: Vec<f64>,
    forward_seconds_median: f64,
    backward_seconds_median: f64,
    optimizer_seconds_median: f64,
    tokens_per_second: f64,
    /// Of the large products of a step without recomputation, a second.
    model_flops_per_second: f64,
}

/// The parts of one step, in seconds.
#[derive(Debug, Clone, Copy)]
struct Split {
    forward: f64,
    backward: f64,
    optimizer: f64,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let config = RunConfig::load(&args.config, &args.set).or_exit(Exit::Usage)?;
    let device = config.open_device().or_exit(Exit::Usage)?;
    let bucket = args.bucket.map_or(config.datasets[0].buckets[0], |size| size.0);
    let measured = measure(&args, &config, bucket, &device).or_exit(Exit::Model)?;
    match args.json {
        true => super::print(&format!(
            "{}\n",
            serde_json::to_string(&measured).or_exit(Exit::Training)?
        )),
        false => super::print(&measured.table()),
    }
}

fn measure(args: &Args, config: &RunConfig, bucket: Bucket, device: &Device) -> anyhow::Result<Measured> {
    let dtype: DType = config.model.dtype.into();
    let directory = match config.model.directory() {
        Some(directory) => directory,
        None => hub::fetch::locate(
            &config.model.path,
            &config.model.revision,
            config.model.variant.as_deref(),
        )?,
    };
    let weights = match args.random_weights {
        true => Weights::random(dtype, device),
        false => Weights::open(config.model.folder(&directory).part("transformer"), dtype, device)?,
    };
    weights.ensure_memory(&[])?;
    let trainable = Arc::new(Trainable::new(
        &config.lora,
        &rooms::names(),
        Rng::new(config.seed),
        device,
    )?);
    let planter = (!args.forward).then(|| trainable.clone() as Arc<dyn Planter>);
    let batch_size = config.train.batch_size;
    let bare = bare::open(&directory, weights.clone(), planter, bucket, batch_size)?;
    let vars: Vec<Var> = match args.forward {
        true => Vec::new(),
        false => trainable
            .finish()?
            .into_iter()
            .flat_map(|pair| [pair.a, pair.b])
            .collect(),
    };
    let mut optimizer = AdamW::new(vars.clone(), &config.optimizer)?;
    let keep = config.train.keep(device);
    let mut once = || match args.forward {
        true => forward(&bare, device),
        false => step(&bare, config, &vars, &mut optimizer, keep),
    };
    way::take();
    let mut splits = (0..=args.steps)
        .map(|_| once())
        .collect::<anyhow::Result<Vec<Split>>>()?;
    let attention = way::ways(&way::take());
    splits.remove(0); // the first one warms up
    let peak_memory_bytes = memory::peak(device); // before the product below takes any
    let profile = args.profile.then(|| profile::measure(device, || once().map(drop)));
    let work = bare.work;
    Ok(Measured {
        device: if device.is_cpu() { "cpu" } else { "cuda" },
        bucket,
        batch_size,
        dtype: config.model.dtype,
        keep: match config.train.gradient_checkpointing {
            true => config.train.keep,
            false => Policy::All,
        },
        attention,
        threads: rayon::current_num_threads(),
        params: weights.taken(),
        trainable: vars.iter().map(|var| var.elem_count()).sum(),
        tokens: work.tokens,
        pace: Pace::of(&splits, work, batch_size, args.forward),
        matmul_flops_per_second: best_product(dtype, device)?,
        peak_memory_bytes,
        profile: profile.transpose()?,
    })
}

/// A training step as `train` makes it.
fn step(bare: &Bare, config: &RunConfig, vars: &[Var], optimizer: &mut AdamW, keep: Keep) -> anyhow::Result<Split> {
    let device = bare.target.device();
    let started = Mark::now(device)?;
    let lost = RefCell::new(None);
    let loss = |prediction: &Tensor| {
        let _span = span(Level::Op, device, || "loss".into());
        let loss = objective::loss(prediction, &bare.target, None)?;
        lost.replace(Some(Mark::now(device)?));
        Ok(loss)
    };
    let passed = forward_backward(&*bare.denoiser, &bare.input, &loss, vars, keep)?;
    let gradients: Option<Vec<Tensor>> = passed.gradients.into_iter().collect();
    let gradients = gradients.context("an adapter without a gradient")?;
    let norm = {
        let _span = span(Level::Op, device, || "norm of all gradients".into());
        clip::global_norm(&gradients)?
    };
    let back = Mark::now(device)?;
    let scale = config
        .train
        .max_grad_norm
        .map_or(1.0, |most| clip::coefficient(norm, most));
    {
        let _span = span(Level::Op, device, || "optimiser".into());
        optimizer.step(&gradients, scale, config.optimizer.lr)?;
    }
    let done = Mark::now(device)?;
    let lost = lost.into_inner().context("a step without a loss")?;
    Ok(Split {
        forward: lost.since(&started)?,
        backward: back.since(&lost)?,
        optimizer: done.since(&back)?,
    })
}

/// A sampling step without guidance.
fn forward(bare: &Bare, device: &Device) -> anyhow::Result<Split> {
    let started = Mark::now(device)?;
    drop(bare.denoiser.forward(&bare.input)?);
    Ok(Split {
        forward: Mark::now(device)?.since(&started)?,
        backward: 0.0,
        optimizer: 0.0,
    })
}

/// The fastest of some products of square matrices, in operations a second.
fn best_product(dtype: DType, device: &Device) -> anyhow::Result<f64> {
    const TIMES: usize = 8;
    let side = if device.is_cpu() { 1536 } else { 8192 };
    let a = Tensor::randn(0f32, 1.0, (side, side), device)?.to_dtype(dtype)?;
    let mut best = f64::INFINITY;
    for _ in 0..TIMES {
        let started = Mark::now(device)?;
        drop(a.matmul(&a)?);
        best = best.min(Mark::now(device)?.since(&started)?);
    }
    Ok(2.0 * (side as f64).powi(3) / best)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Pace {
    fn of(splits: &[Split], work: Work, batch_size: usize, forward: bool) -> Self {
        let all = |split: &Split| split.forward + split.backward + split.optimizer;
        let step_seconds: Vec<f64> = splits.iter().map(all).collect();
        let seconds = median(step_seconds.iter().copied());
        let flops = match forward {
            true => work.linear + work.attention,
            false => work.step(),
        };
        Self {
            step_seconds_median: seconds,
            step_seconds,
            forward_seconds_median: median(splits.iter().map(|split| split.forward)),
            backward_seconds_median: median(splits.iter().map(|split| split.backward)),
            optimizer_seconds_median: median(splits.iter().map(|split| split.optimizer)),
            tokens_per_second: (batch_size * work.tokens) as f64 / seconds,
            model_flops_per_second: batch_size as f64 * flops / seconds,
        }
    }
}

impl Measured {
    fn table(&self) -> String {
        let pace = &self.pace;
        let least = pace.step_seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = pace.step_seconds.iter().copied().fold(0.0, f64::max);
        let (flops, peak) = (pace.model_flops_per_second / 1e9, self.matmul_flops_per_second / 1e9);
        let memory = self
            .peak_memory_bytes
            .map_or("unknown".into(), |bytes| format!("{} MiB", bytes >> 20));
        let attention: Vec<String> = self.attention.iter().map(Way::to_string).collect();
        let mut text = format!(
            "bucket     {} x {}, {} tokens each, {:?}, {} threads\n\
             numbers    {} in the transformer, {} in adapters\n\
             step       {:.3} s (median of {}; {least:.3} to {most:.3})\n\
             of that    {:.3} s forward, {:.3} s backward, {:.3} s optimiser\n\
             tokens     {:.0} a second\n\
             products   {flops:.1} GFLOP/s without recomputation, {:.0} % of the {peak:.1} that a square product reaches\n\
             attention  {}\n\
             memory     {memory} at most\n",
            self.batch_size,
            self.bucket,
            self.tokens,
            self.dtype,
            self.threads,
            self.params,
            self.trainable,
            pace.step_seconds_median,
            pace.step_seconds.len(),
            pace.forward_seconds_median,
            pace.backward_seconds_median,
            pace.optimizer_seconds_median,
            pace.tokens_per_second,
            100.0 * flops / peak,
            attention.join(", "),
        );
        if let Some(profile) = &self.profile {
            text += &profile.table();
        }
        text
    }
}
