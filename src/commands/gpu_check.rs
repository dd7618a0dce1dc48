//! `vtrain gpu-check`: whether a GPU computes what the CPU does. Hidden, and there only with the feature `cuda`.
//!
//! Every op, forwards and back, and every tiny family of a folder, against the CPU in f32; or two files of latents against
//! each other. Sums run in fixed orders, as with `deterministic: true`, which is checked as well. Errors are max |a - b| / max |b|. Inputs are fresh in every run, and the memory that outputs are written to is
//! filled with what is no number before.

mod cases;
mod families;
mod optimiser;
#[cfg(feature = "nccl")]
mod ranks;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};

use super::{Exit, Failure, OrExit};
use crate::config::Device as Place;
use crate::ops::determinism;
use crate::rng::Rng;

/// Compare a GPU with the CPU
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The CPU itself, for trying this command out
    #[arg(long, default_value = "cuda")]
    device: Place,
    /// Folders of tiny checkpoints, each with a transformer/config.json (repeatable)
    #[arg(long, value_name = "DIR")]
    family: Vec<PathBuf>,
    /// Compare what two files of latents hold, and nothing else
    #[arg(long, num_args = 2, value_names = ["FILE", "FILE"])]
    latents: Option<Vec<PathBuf>>,
    /// Of the inputs; by the clock where none is given
    #[arg(long)]
    seed: Option<u64>,
}

/// One line of the table.
pub(super) struct Row {
    pub what: String,
    pub error: f64,
    /// The most that the error may be.
    pub most: f64,
}

impl Row {
    /// What is no number is no success.
    fn holds(&self) -> bool {
        self.error <= self.most
    }
}

pub fn run(args: Args) -> Result<(), Failure> {
    if let Some([a, b]) = args.latents.as_deref() {
        let row = latents(a, b).or_exit(Exit::Usage)?;
        return told(&[row]);
    }
    determinism::require(true);
    let device = args.device.open().or_exit(Exit::Usage)?;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = args
        .seed
        .unwrap_or_else(|| clock.map_or(0, |time| u64::from(time.subsec_nanos())));
    super::print(&format!("seed {seed}\n"))?;
    let mut rows = Vec::new();
    for case in cases::all() {
        for dtype in [DType::F32, DType::BF16] {
            // What a case cannot do is a line of the table as well: the others are still wanted.
            let mut rng = Rng::new(seed);
            match case.compare(&device, dtype, &mut rng) {
                Ok(found) => rows.extend(found),
                Err(error) => rows.push(failed(&format!("{} {dtype:?}", case.name), &error.into())),
            }
        }
    }
    match cases::repeated(&device, &mut Rng::new(seed)) {
        Ok(found) => rows.extend(found),
        Err(error) => rows.push(failed("attention once more", &error.into())),
    }
    match optimiser::compare(&device, &mut Rng::new(seed)) {
        Ok(found) => rows.extend(found),
        Err(error) => rows.push(failed("optimiser", &error.into())),
    }
    #[cfg(feature = "nccl")]
    match ranks::compare(&device, &mut Rng::new(seed)) {
        Ok(found) => rows.extend(found),
        Err(error) => rows.push(failed("NCCL", &error)),
    }
    for folder in &args.family {
        for dtype in [DType::F32, DType::BF16] {
            match families::compare(folder, &device, dtype) {
                Ok(found) => rows.extend(found),
                Err(error) => rows.push(failed(&format!("{} {dtype:?}", folder.display()), &error)),
            }
        }
    }
    told(&rows)
}

/// The most that an error may be in this type.
pub(super) fn most(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-4 } else { 1e-2 }
}

fn failed(what: &str, error: &anyhow::Error) -> Row {
    let words = format!("{error:#}");
    Row {
        what: format!("{what}: {}", words.lines().next().unwrap_or_default()),
        error: f64::NAN,
        most: 0.0,
    }
}

/// The table; a failure where a line does not hold.
fn told(rows: &[Row]) -> Result<(), Failure> {
    let mut text = String::new();
    for row in rows {
        let verdict = if row.holds() { "ok  " } else { "FAIL" };
        let _ = writeln!(text, "{verdict} {:9.2e} of {:7.0e}  {}", row.error, row.most, row.what);
    }
    let wrong = rows.iter().filter(|row| !row.holds()).count();
    let _ = writeln!(text, "{} of {} lines hold", rows.len() - wrong, rows.len());
    super::print(&text)?;
    match wrong {
        0 => Ok(()),
        _ => Err(anyhow::anyhow!("{wrong} of {} comparisons failed", rows.len())).or_exit(Exit::Training),
    }
}

/// max |a - b| / max |b|, in f64; not a number where either holds what is none.
pub(super) fn difference(a: &Tensor, b: &Tensor) -> candle_core::Result<f64> {
    let numbers = |tensor: &Tensor| {
        let tensor = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        tensor.flatten_all()?.to_vec1::<f64>()
    };
    let (a, b) = (numbers(a)?, numbers(b)?);
    if a.len() != b.len() {
        candle_core::bail!("{} numbers beside {}", a.len(), b.len());
    }
    if a.iter().chain(&b).any(|number| !number.is_finite()) {
        return Ok(f64::NAN);
    }
    let furthest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let largest = b.iter().map(|b| b.abs()).fold(0.0, f64::max);
    Ok(furthest / largest.max(1e-30))
}

/// Fills what the device's pool has free with what is no number, as far as small outputs go.
pub(super) fn poison(device: &Device) -> candle_core::Result<()> {
    let sizes = [1 << 24, 1 << 20, 1 << 20, 1 << 16, 1 << 16, 1 << 12, 1 << 12];
    let poisoned = sizes.map(|size| Tensor::full(f32::NAN, size, device));
    for tensor in poisoned {
        tensor?;
    }
    Ok(())
}

/// Two files of one tensor each.
fn latents(a: &Path, b: &Path) -> anyhow::Result<Row> {
    let one = |path: &Path| {
        let mut tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        ensure!(tensors.len() == 1, "{} holds {} tensors", path.display(), tensors.len());
        let name = tensors.keys().next().cloned().unwrap_or_default();
        tensors.remove(&name).context("the one tensor is there")
    };
    Ok(Row {
        what: format!("{} beside {}", a.display(), b.display()),
        error: difference(&one(a)?, &one(b)?)?,
        most: 3e-2,
    })
}
