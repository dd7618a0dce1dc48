//! Ranks: processes that train together, and how they talk. The only place that names MPI and NCCL.
//!
//! A run of world size N is N processes with the ranks 0 to N - 1, each started with the same command by `vtrain launch`,
//! `mpirun`, `srun` or `torchrun`. Engines that exist carry the messages; where there is one process, nothing is carried.
//!
//! All ranks make the same calls in the same order, as in MPI. A rank that fails ends with an exit code that is not zero,
//! and whoever started the ranks then ends the others.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(feature = "nccl")]
pub mod nccl;
pub mod place;
pub mod rendezvous;
pub mod single;

pub use place::Place;
pub use single::Single;

use place::Starter;

/// `dist:` in a run file: for runs of several processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Seconds that a rank waits for the others at one place before the run ends with their names.
    pub timeout: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { timeout: 1800.0 }
    }
}

impl Config {
    /// Values that parse but make no sense, by path below `dist`.
    pub fn check(&self) -> Vec<(String, String)> {
        // A thousand years still fit into the clock's numbers.
        match self.timeout > 0.0 && self.timeout < 3e10 {
            true => Vec::new(),
            false => vec![(
                "timeout".into(),
                format!("must be a number of seconds above 0, got {}", self.timeout),
            )],
        }
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }
}

/// Where the pieces of a length begin and how long they are, none longer than `most`: no message is.
pub fn pieces(length: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..length)
        .step_by(most)
        .map(move |from| (from, most.min(length - from)))
}

/// What ranks say to each other. Every call is made by all of them, in the same order.
///
/// # Errors
/// All calls: ranks that did not come in time, by number; a transport that broke down.
pub trait Communicator {
    /// From 0.
    fn rank(&self) -> usize;

    fn world_size(&self) -> usize;

    /// This rank's number on its machine, from 0: which GPU it takes.
    fn local_rank(&self) -> usize;

    /// The sum of all ranks' vectors: (n), f32, on the vector's device. All ranks get the same bits.
    fn all_reduce(&self, numbers: &Tensor) -> anyhow::Result<Tensor>;

    /// What each rank gave, by rank. Lengths may differ.
    fn all_gather(&self, bytes: &[u8]) -> anyhow::Result<Vec<Vec<u8>>>;

    /// What rank 0 gave; what others give does not matter.
    fn broadcast(&self, bytes: Vec<u8>) -> anyhow::Result<Vec<u8>>;

    /// Waits until all are here.
    fn barrier(&self) -> anyhow::Result<()>;

    /// What was sent and how long it took since the start.
    fn traffic(&self) -> Traffic;

    /// For those who share numbers out; none where there is nobody to share them with.
    fn sharing(&self) -> Option<Arc<dyn Gather>> {
        None
    }

    /// Takes leave of the others. A rank that fails must not: it just ends.
    fn finish(&self);

    /// Whether messages are carried at all; where there is one process, there may be nothing to carry them.
    fn talks(&self) -> bool {
        self.world_size() > 1
    }

    /// Whether this is rank 0, who writes and speaks for all.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Whether any rank says yes.
    fn any(&self, yes: bool) -> anyhow::Result<bool> {
        if self.world_size() == 1 {
            return Ok(yes);
        }
        Ok(self.all_gather(&[u8::from(yes)])?.concat().contains(&1))
    }
}

/// Puts numbers together of which each rank has a part. As with all calls, ranks begin in the same order.
pub trait Gather: Send + Sync {
    fn rank(&self) -> usize;

    fn world_size(&self) -> usize;

    /// Begins to put the ranks' parts together: (n) each, on the CPU or a GPU, of one floating-point type.
    fn begin(&self, part: &Tensor) -> anyhow::Result<Box<dyn Gathering>>;
}

/// Numbers that are on their way.
pub trait Gathering: Send {
    /// Waits for them: (N n), by rank, on the CPU or where the parts were.
    fn end(self: Box<Self>) -> anyhow::Result<Tensor>;
}

/// What communication cost one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// Bytes that it put in.
    pub bytes: u64,
    /// From when all were there until all had it.
    pub moving: Duration,
    /// Until the last one came.
    pub waiting: Duration,
}

impl std::ops::Sub for Traffic {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            bytes: self.bytes - before.bytes,
            moving: self.moving - before.moving,
            waiting: self.waiting - before.waiting,
        }
    }
}

/// A failure that another rank tells, mostly rank 0.
#[derive(Debug)]
pub struct ToldByFirst;

impl fmt::Display for ToldByFirst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rank 0 says why the run ends")
    }
}

impl std::error::Error for ToldByFirst {}

/// The others, as the environment says that this process has some. Those that MPI started talk by MPI where this build can;
/// all others by NCCL.
///
/// # Errors
/// An environment that contradicts itself; ranks that this build cannot connect, or that did not come.
pub fn open(config: &Config) -> anyhow::Result<Box<dyn Communicator>> {
    let place = Place::here()?;
    #[cfg(feature = "mpi")]
    if place.starter == Starter::Mpi && place.world_size > 1 {
        return Ok(Box::new(mpi::Mpi::open(&place, config.timeout())?));
    }
    // Also alone where a starter says so, so that one GPU is enough to try it.
    #[cfg(feature = "nccl")]
    if place.world_size > 1 || (place.starter == Starter::Environment && nccl::gpus() > 0) {
        return Ok(Box::new(nccl::Nccl::open(&place, config.timeout())?));
    }
    let _ = config; // without features nobody is waited for
    match place.world_size {
        1 => Ok(Box::new(Single)),
        _ => Err(unconnected(&place)),
    }
}

/// Why nothing connects a rank with the others.
fn unconnected(place: &Place) -> anyhow::Error {
    let Place {
        rank,
        world_size,
        starter,
        ..
    } = place;
    let (built, advice) = match (starter, cfg!(feature = "mpi")) {
        (Starter::Mpi, _) => (
            "without MPI and NCCL",
            "cargo build --release --features mpi (or cuda,cudnn,nccl)",
        ),
        (Starter::Slurm, true) => (
            "with MPI, which has to start the ranks itself",
            "Start it with srun --mpi=pmix",
        ),
        (_, true) => (
            "with MPI, which has to start the ranks itself",
            "Start it with vtrain launch --backend mpi, or mpirun",
        ),
        (_, false) => (
            "without NCCL and MPI",
            "Build it with --features cuda,cudnn,nccl for GPUs, or with --features mpi",
        ),
    };
    anyhow!(
        "this is rank {rank} of {world_size} ({starter}), and nothing connects it with the others: this vtrain was built \
         {built}. {advice}"
    )
}
