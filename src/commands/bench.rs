//! `vtrain bench`: the cost of a training step on this machine, on synthetic clips of a run's bucket.

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
use crate::models::synthetic::SyntheticBatch;
use crate::models::{self, registry};
use crate::nn::Weights;
use crate::nn::storage::quantize::{Quantization, QuantizationSetting};
use crate::ops::attention::way::{self, Backend, Ran};
use crate::ops::clock::Timestamp;
use crate::ops::instructions::Instructions;
use crate::ops::profile::{Level, span};
use crate::optim::adamw::AdamW;
use crate::optim::clip;
use crate::process::allocations;
use crate::rng::Rng;
use crate::train::memory;
use crate::train::segments::{ActivationPolicy, SavedActivations, forward_backward};
use profile::Profile;

/// Measure a training step: total time, time per part, memory
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run file (YAML)
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Override a key of the run file (repeatable; values are YAML)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Use random weights: nothing but model.path/transformer/config.json is needed
    #[arg(long)]
    random_weights: bool,
    /// Frames, height and width, in place of the first bucket of the first data set
    #[arg(long, value_name = "F,H,W")]
    bucket: Option<Size>,
    /// Number of measured steps, after a warm-up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Only the forward pass, without adapters: a sampling step
    #[arg(long)]
    forward: bool,
    /// Also profile ops and kernels, in two further steps
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

/// Measurements. Times in seconds.
#[derive(Debug, Serialize)]
struct Measured {
    device: &'static str,
    bucket: Bucket,
    batch_size: usize,
    dtype: models::Dtype,
    quantization: QuantizationSetting,
    /// `train.activation_policy`, if checkpointing is on.
    activation_policy: ActivationPolicy,
    /// Implementations that attention ran on.
    attention: Vec<Backend>,
    /// True where attention ran on slow kernels although cuDNN could have run it.
    attention_slow: bool,
    /// Instructions that products ran on, on the CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<Instructions>,
    threads: usize,
    params: usize,
    /// Bytes of the frozen weights.
    weight_bytes: usize,
    /// Bytes of blocks in memory at most, with `model.offload`.
    #[serde(skip_serializing_if = "Option::is_none")]
    block_bytes_peak: Option<usize>,
    trainable: usize,
    tokens: usize,
    #[serde(flatten)]
    pace: Pace,
    /// Highest throughput of this machine's matrix product, per second.
    matmul_flops_per_second: f64,
    /// Peak memory: resident memory of the process; on a GPU, memory of the tensors' pool.
    /// Peak while the model was loaded.
    loading_peak_bytes: Option<u64>,
    peak_memory_bytes: Option<u64>,
    /// Peak of what the program itself allocated during the steps, weights and adapters included; on a GPU, in main memory.
    allocated_peak_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Profile>,
}

/// Durations of steps.
#[derive(Debug, Serialize)]
struct Pace {
    step_seconds_median: f64,
    step_seconds: Vec<f64>,
    forward_seconds_median: f64,
    backward_seconds_median: f64,
    optimizer_seconds_median: f64,
    tokens_per_second: f64,
    /// FLOPs of the large products of a step without recomputation, per second.
    model_flops_per_second: f64,
}

/// Parts of one step, in seconds.
#[derive(Debug, Clone, Copy)]
struct Split {
    forward: f64,
    backward: f64,
    optimizer: f64,
}

/// Runs `vtrain bench`: times training steps and prints the table, or JSON.
///
/// # Errors
/// Fails for settings, model files, or a failed step, each with its exit code.
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
    allocations::count();
    let dtype: DType = config.model.dtype.into();
    let directory = match config.model.directory() {
        Some(directory) => directory,
        None => hub::fetch::locate(
            &config.model.path,
            &config.model.revision,
            config.model.variant.as_deref(),
        )?,
    };
    let trainable = Arc::new(Trainable::new(
        &config.lora,
        &registry::names(),
        Rng::new(config.seed),
        device,
    )?);
    let load = match args.forward {
        true => config.model.load(device),
        false => config.model.load(device).with_adapters(trainable.clone()),
    };
    let folder = config.model.folder(&directory)?;
    let weights = match args.random_weights {
        true => Weights::random(&load),
        false => Weights::read(&folder.part("transformer"), &load)?,
    };
    let family = registry::of_transformer(&folder.part("transformer"))?;
    let form = load.quantization.transformer;
    let weights = weights.quantized(form, &family.dense_modules.of(form));
    weights.ensure_memory(&[])?;
    let batch_size = config.train.batch_size;
    let batch = registry::open_synthetic(&folder, weights.clone(), bucket, batch_size)?;
    let vars: Vec<Var> = match args.forward {
        true => Vec::new(),
        false => trainable
            .finish()?
            .into_iter()
            .flat_map(|pair| [pair.a, pair.b])
            .collect(),
    };
    let loading_peak_bytes = memory::peak(device);
    let mut optimizer = AdamW::new(vars.clone(), &config.optimizer)?;
    allocations::take_peak();
    let saved = match load.residency.lends_in_turn() {
        true => config
            .train
            .saved_activations(device, &config.output_dir)
            .without_blocks(),
        false => config.train.saved_activations(device, &config.output_dir),
    };
    let mut once = || match args.forward {
        true => forward(&batch, device),
        false => step(&batch, config, &vars, &mut optimizer, saved.clone()),
    };
    way::take();
    let mut splits = (0..=args.steps)
        .map(|_| once())
        .collect::<anyhow::Result<Vec<Split>>>()?;
    let ran = way::take();
    splits.remove(0); // the first one warms up
    let allocated_peak_bytes = allocations::take_peak();
    let peak_memory_bytes = memory::peak(device); // before the product below uses more
    let profile = args.profile.then(|| profile::measure(device, || once().map(drop)));
    Ok(Measured {
        device: if device.is_cpu() { "cpu" } else { "cuda" },
        bucket,
        batch_size,
        dtype: config.model.dtype,
        quantization: config.model.quantization,
        activation_policy: match config.train.gradient_checkpointing {
            true => config.train.activation_policy,
            false => ActivationPolicy::All,
        },
        attention: way::ways(&ran),
        attention_slow: ran.iter().any(Ran::is_needlessly_slow),
        instructions: device.is_cpu().then(Instructions::detect),
        threads: rayon::current_num_threads(),
        params: weights.taken(),
        weight_bytes: weights.bytes(),
        block_bytes_peak: weights.lent().and_then(|lent| Some(lent.live()?.most())),
        trainable: vars.iter().map(|var| var.elem_count()).sum(),
        tokens: batch.tokens,
        pace: Pace::of(&splits, &batch, batch_size, args.forward),
        matmul_flops_per_second: best_product(dtype, device)?,
        loading_peak_bytes,
        peak_memory_bytes,
        allocated_peak_bytes,
        profile: profile.transpose()?,
    })
}

/// Runs a training step as `train` does.
fn step(
    batch: &SyntheticBatch,
    config: &RunConfig,
    vars: &[Var],
    optimizer: &mut AdamW,
    saved: SavedActivations,
) -> anyhow::Result<Split> {
    let device = batch.target.device();
    let started = Timestamp::now(device)?;
    let lost = RefCell::new(None);
    let loss = |prediction: &Tensor| {
        let _span = span(Level::Op, device, || "loss".into());
        let loss = objective::loss(prediction, &batch.target, None)?;
        lost.replace(Some(Timestamp::now(device)?));
        Ok(loss)
    };
    let passed = forward_backward(&*batch.denoiser, &batch.input, &loss, vars, saved)?;
    let gradients: Option<Vec<Tensor>> = passed.gradients.into_iter().collect();
    let gradients = gradients.context("an adapter without a gradient")?;
    let norm = {
        let _span = span(Level::Op, device, || "norm of all gradients".into());
        clip::global_norm(&gradients)?
    };
    let back = Timestamp::now(device)?;
    let scale = config
        .train
        .max_grad_norm
        .map_or(1.0, |most| clip::coefficient(norm, most));
    {
        let _span = span(Level::Op, device, || "optimiser".into());
        optimizer.step(&gradients, scale, config.optimizer.lr)?;
    }
    let done = Timestamp::now(device)?;
    let lost = lost.into_inner().context("a step without a loss")?;
    Ok(Split {
        forward: lost.since(&started)?,
        backward: back.since(&lost)?,
        optimizer: done.since(&back)?,
    })
}

/// Runs a sampling step without guidance.
fn forward(batch: &SyntheticBatch, device: &Device) -> anyhow::Result<Split> {
    let started = Timestamp::now(device)?;
    drop(batch.denoiser.forward(&batch.input)?);
    Ok(Split {
        forward: Timestamp::now(device)?.since(&started)?,
        backward: 0.0,
        optimizer: 0.0,
    })
}

/// Returns the highest throughput of several square matrix products, in operations per second.
fn best_product(dtype: DType, device: &Device) -> anyhow::Result<f64> {
    const TIMES: usize = 8;
    let side = if device.is_cpu() { 1536 } else { 8192 };
    let a = Tensor::randn(0f32, 1.0, (side, side), device)?.to_dtype(dtype)?;
    let mut best = f64::INFINITY;
    for _ in 0..TIMES {
        let started = Timestamp::now(device)?;
        drop(a.matmul(&a)?);
        best = best.min(Timestamp::now(device)?.since(&started)?);
    }
    Ok(2.0 * (side as f64).powi(3) / best)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Pace {
    fn of(splits: &[Split], batch: &SyntheticBatch, batch_size: usize, forward: bool) -> Self {
        let work = batch.work;
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
            tokens_per_second: (batch_size * batch.tokens) as f64 / seconds,
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
        let attention: Vec<String> = self.attention.iter().map(Backend::to_string).collect();
        let instructions = self.instructions.as_ref();
        let instructions = instructions.map_or(String::new(), |by| format!("kernels    {by}\n"));
        let form = self.quantization.form().map_or("dense", Quantization::name);
        let mut text = format!(
            "bucket     {} x {}, {} tokens each, {:?}, {} threads\n\
             numbers    {} in the transformer ({form}: {} MiB), {} in adapters\n\
             step       {:.3} s (median of {}; {least:.3} to {most:.3})\n\
             of that    {:.3} s forward, {:.3} s backward, {:.3} s optimiser\n\
             tokens     {:.0} a second\n\
             products   {flops:.1} GFLOP/s without recomputation, {:.0} % of the {peak:.1} that a square product reaches\n\
             attention  {}\n\
             {instructions}\
             memory     {memory} at most\n",
            self.batch_size,
            self.bucket,
            self.tokens,
            self.dtype,
            self.threads,
            self.params,
            self.weight_bytes >> 20,
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
