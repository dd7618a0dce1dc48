//! `vtrain gpu-check`: whether a GPU computes what the CPU does. Hidden: scripts/gpu_check.sh calls it.
//!
//! Ops, forwards and back, the optimiser, and the parts of tiny checkpoints, each against the CPU in f32; or two files of
//! latents against each other. Errors are max |a - b| / max |b|. Inputs are fresh in every run, and the memory that outputs
//! are written to is filled with what is no number before. With `--device cpu` the CPU stands in for the GPU.

mod cases;
mod coders;
mod optimiser;
#[cfg(feature = "nccl")]
mod ranks;
pub mod row;
mod training;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use candle_core::{DType, Device};
use clap::ValueEnum;

use super::{Exit, Failure, OrExit};
use crate::config::Device as Place;
use crate::ops::determinism;
use crate::rng::Rng;
use row::{Row, Table, difference};
use training::Extent;

/// Compare a GPU with the CPU
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The CPU itself, for trying this command out
    #[arg(long, default_value = "cuda")]
    device: Place,
    /// What to compare (repeatable); all of it where none is named
    #[arg(long, value_name = "GROUP")]
    group: Vec<Group>,
    /// Folders of tiny checkpoints, for the groups that want one (repeatable)
    #[arg(long, value_name = "DIR")]
    family: Vec<PathBuf>,
    /// Tokens and features of a head of long attention
    #[arg(
        long,
        value_name = "TOKENSxFEATURES",
        value_delimiter = ',',
        default_value = "17776x64,33000x128"
    )]
    tokens: Vec<cases::Tokens>,
    /// A few steps on small clips, where the usual is 20 on larger ones: for trying this command out
    #[arg(long)]
    quick: bool,
    /// Compare what two files of latents hold, and nothing else
    #[arg(long, num_args = 2, value_names = ["FILE", "FILE"])]
    latents: Option<Vec<PathBuf>>,
    /// Of the inputs; by the clock where none is given
    #[arg(long)]
    seed: Option<u64>,
}

/// What is compared together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    Norm,
    Residual,
    Activation,
    Rotary,
    Linear,
    Attention,
    MaskedAttention,
    LongAttention,
    /// Attention as with `deterministic: true`: twice the same bits
    Deterministic,
    /// What autoencoders are made of
    Convolution,
    Optimiser,
    /// One rank of NCCL
    Nccl,
    /// Of a checkpoint: its prediction, and training steps
    Training,
    /// Of a checkpoint: training steps with dropout in the adapters
    Dropout,
    /// Of a checkpoint: gradients by every `train.keep`
    Policies,
    /// Of a checkpoint: clips to latents and back
    Vae,
    /// Of a checkpoint: clips to latents and back in tiles
    Tiling,
    /// Of a checkpoint: a prompt
    Text,
    /// Of a checkpoint: an image to start from
    Image,
}

impl Group {
    fn wants_a_checkpoint(self) -> bool {
        use Group::{Dropout, Image, Policies, Text, Tiling, Training, Vae};
        matches!(self, Training | Dropout | Policies | Vae | Tiling | Text | Image)
    }
}

pub fn run(args: Args) -> Result<(), Failure> {
    let mut table = Table::default();
    if let Some([a, b]) = args.latents.as_deref() {
        table.tell(&latents(a, b).or_exit(Exit::Usage)?)?;
        return table.end();
    }
    let mut groups = args.group.clone();
    if groups.is_empty() {
        // Tiling and images are not for every checkpoint: these are named where they are wanted.
        let possible = |group: &Group| !group.wants_a_checkpoint() || !args.family.is_empty();
        let usual = |group: &&Group| !matches!(group, Group::Tiling | Group::Image) && possible(group);
        groups = Group::value_variants().iter().filter(usual).copied().collect();
    }
    if let Some(group) = groups.iter().find(|group| group.wants_a_checkpoint())
        && args.family.is_empty()
    {
        return Err(Failure::usage(anyhow::anyhow!(
            "the group {group:?} wants a checkpoint: name its folder by --family"
        )));
    }
    let device = args.device.open().or_exit(Exit::Usage)?;
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = args
        .seed
        .unwrap_or_else(|| clock.map_or(0, |time| u64::from(time.subsec_nanos())));
    super::print(&format!("seed {seed}\n"))?;
    let extent = if args.quick { Extent::QUICK } else { Extent::FULL };
    for group in groups {
        determinism::require(group == Group::Deterministic);
        match group.wants_a_checkpoint() {
            true => {
                for folder in &args.family {
                    of_checkpoint(&mut table, group, folder, &device, (extent, seed))?;
                }
            }
            false => alone(&mut table, group, &args.tokens, &device, seed)?,
        }
    }
    table.end()
}

/// A group that needs no checkpoint. What a case cannot do is a line of the table as well: the others are still wanted.
fn alone(table: &mut Table, group: Group, tokens: &[cases::Tokens], device: &Device, seed: u64) -> Result<(), Failure> {
    for case in cases::of(group, tokens) {
        for dtype in [DType::F32, DType::BF16] {
            let found = case.compare(device, dtype, &mut Rng::new(seed));
            table.tell_all(&format!("{} {dtype:?}", case.name), found.map_err(Into::into))?;
        }
    }
    match group {
        Group::Deterministic => {
            let found = cases::repeated(device, &mut Rng::new(seed));
            table.tell_all("attention once more", found.map_err(Into::into))
        }
        Group::Optimiser => {
            let found = optimiser::compare(device, &mut Rng::new(seed));
            table.tell_all("optimiser", found.map_err(Into::into))
        }
        #[cfg(feature = "nccl")]
        Group::Nccl => table.tell_all("NCCL", ranks::compare(device, &mut Rng::new(seed))),
        #[cfg(not(feature = "nccl"))]
        Group::Nccl => super::print("NCCL: not built in\n"),
        _ => Ok(()),
    }
}

fn of_checkpoint(
    table: &mut Table,
    group: Group,
    folder: &Path,
    device: &Device,
    (extent, seed): (Extent, u64),
) -> Result<(), Failure> {
    let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
    let found = match group {
        Group::Training => training::compare(folder, &name, device, extent, 0.0),
        Group::Dropout => training::compare(folder, &name, device, extent, 0.3),
        Group::Policies => training::policies(folder, &name, device, extent),
        Group::Vae => coders::vae(folder, &name, device, seed),
        Group::Tiling => coders::tiling(folder, &name, device, seed),
        Group::Text => coders::text(folder, &name, device),
        Group::Image => coders::image(folder, &name, device, seed),
        _ => Ok(Vec::new()),
    };
    table.tell_all(&format!("{name} {group:?}"), found)
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
        attention: Vec::new(),
    })
}
