//! `vtrain gpu-check`: compares a GPU's results with the CPU's. Not shipped: scripts/gpu_check.sh calls it, in a build with
//! `--features gpu-check`.
//!
//! Ops, forward and backward, the optimiser, and the parts of tiny checkpoints, each against the CPU in f32; or two
//! files of latents against each other. Errors are max |a - b| / max |b|. Inputs are new in every run, and the memory
//! of the outputs is filled with NaN before. With `--device cpu` the CPU replaces the GPU.

mod cases;
mod coders;
mod optimiser;
#[cfg(feature = "nccl")]
mod ranks;
pub mod row;
mod stored;
mod streaming;
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
    /// The CPU itself, to test this command
    #[arg(long, default_value = "cuda")]
    device: Place,
    /// Groups to compare (repeatable); all by default
    #[arg(long, value_name = "GROUP")]
    group: Vec<Group>,
    /// Folders of tiny checkpoints, for the groups that need one (repeatable)
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
    /// A few steps on small clips, instead of 20 on larger ones: to test this command
    #[arg(long)]
    quick: bool,
    /// Compare only two files of latents
    #[arg(long, num_args = 2, value_names = ["FILE", "FILE"])]
    latents: Option<Vec<PathBuf>>,
    /// Seed of the inputs; by default from the clock
    #[arg(long)]
    seed: Option<u64>,
}

/// Groups of comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    Norm,
    Residual,
    Activation,
    Rotary,
    /// Sequences joined and cut
    Sequence,
    Linear,
    /// Matrices in few bits, and layers over them
    Stored,
    Attention,
    MaskedAttention,
    LongAttention,
    /// Attention as with `deterministic: true`: twice the same bits
    Deterministic,
    /// Layers of autoencoders
    Convolution,
    /// Group norms of autoencoders
    FrameNorm,
    /// Attention of autoencoders
    FrameAttention,
    Optimiser,
    /// One rank of NCCL
    Nccl,
    /// The prediction of a checkpoint, and training steps
    Training,
    /// Training steps of a checkpoint with dropout in the adapters
    Dropout,
    /// Gradients of a checkpoint under every `train.activation_policy`
    Policies,
    /// Training steps of a checkpoint with streamed blocks: the same bits as with blocks in memory
    Streaming,
    /// Clips to latents and back, with a checkpoint's VAE
    Vae,
    /// Clips to latents and back in tiles, with a checkpoint's VAE
    Tiling,
    /// A prompt, with a checkpoint's text encoder
    Text,
    /// An image to start from, with a checkpoint's encoders
    Image,
}

impl Group {
    fn wants_a_checkpoint(self) -> bool {
        use Group::{Dropout, Image, Policies, Streaming, Text, Tiling, Training, Vae};
        matches!(
            self,
            Training | Dropout | Policies | Streaming | Vae | Tiling | Text | Image
        )
    }
}

/// Runs `vtrain gpu-check`: prints a line per comparison.
///
/// # Errors
/// Fails for an unusable device, and for a comparison beyond its bound.
pub fn run(args: Args) -> Result<(), Failure> {
    let mut table = Table::default();
    if let Some([a, b]) = args.latents.as_deref() {
        table.tell(&latents(a, b).or_exit(Exit::Usage)?)?;
        return table.end();
    }
    let mut groups = args.group.clone();
    if groups.is_empty() {
        // Not every checkpoint supports tiling and images, so these must be requested.
        let possible = |group: &Group| !group.wants_a_checkpoint() || !args.family.is_empty();
        let usual = |group: &&Group| !matches!(group, Group::Tiling | Group::Image) && possible(group);
        groups = Group::value_variants().iter().filter(usual).copied().collect();
    }
    if let Some(group) = groups.iter().find(|group| group.wants_a_checkpoint())
        && args.family.is_empty()
    {
        return Err(Failure::usage(anyhow::anyhow!(
            "the group {group:?} needs a checkpoint: name its folder by --family"
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
        determinism::require(matches!(group, Group::Deterministic | Group::Streaming));
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

/// Runs a group that needs no checkpoint. A case that fails to run is a line of the table as well, so that the others
/// follow.
fn alone(table: &mut Table, group: Group, tokens: &[cases::Tokens], device: &Device, seed: u64) -> Result<(), Failure> {
    let mut compared = cases::of(group, tokens);
    if group == Group::Stored {
        let mut rng = Rng::new(seed);
        let found = stored::decoded(device, &mut rng);
        table.tell_all("decoding", found.map_err(Into::into))?;
        compared = stored::layers(&mut rng).or_exit(Exit::Training)?;
    }
    for case in compared {
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
        Group::Streaming => streaming::compare(folder, &name, device, extent),
        Group::Vae => coders::vae(folder, &name, device, seed),
        Group::Tiling => coders::tiling(folder, &name, device, seed),
        Group::Text => coders::text(folder, &name, device),
        Group::Image => coders::image(folder, &name, device, seed),
        _ => Ok(Vec::new()),
    };
    table.tell_all(&format!("{name} {group:?}"), found)
}

/// Compares two files of one tensor each.
fn latents(a: &Path, b: &Path) -> anyhow::Result<Row> {
    let one = |path: &Path| {
        let mut tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        ensure!(tensors.len() == 1, "{} holds {} tensors", path.display(), tensors.len());
        let name = tensors.keys().next().cloned().unwrap_or_default();
        tensors.remove(&name).context("the one tensor is there")
    };
    Ok(Row {
        what: format!("{} and {}", a.display(), b.display()),
        error: difference(&one(a)?, &one(b)?)?,
        most: 3e-2,
        attention: Vec::new(),
    })
}
