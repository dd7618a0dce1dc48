//! Distributed training: ranks and their communication. The only module that names MPI and NCCL.
//!
//! A run of world size N is N processes with the ranks 0 to N - 1, each started with the same command by `vtrain
//! launch`, `mpirun`, `srun` or `torchrun`. MPI or NCCL carries the messages; a single process needs none.
//!
//! All ranks make the same calls in the same order, as in MPI. A rank that fails exits with a non-zero code, and the
//! launcher then ends the others.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use candle_core::Tensor;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(feature = "nccl")]
pub mod nccl;
pub mod rank_info;
pub mod rendezvous;
pub mod single;

pub use rank_info::RankInfo;
pub use single::Single;

use rank_info::Starter;

/// `dist:` in a run file: for runs of several processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Seconds that a rank waits for the others in one call before the run ends with an error that names them.
    pub timeout: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { timeout: 1800.0 }
    }
}

impl Config {
    /// Checks `timeout`.
    ///
    /// # Errors
    /// Says what it must be.
    pub fn check_timeout(&self) -> Result<(), String> {
        // A thousand years still fit into the clock's numbers.
        match self.timeout > 0.0 && self.timeout < 3e10 {
            true => Ok(()),
            false => Err(format!("must be a number of seconds above 0, got {}", self.timeout)),
        }
    }

    /// Longest wait for another rank.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }
}

/// Splits a length into pieces of at most `most`, the limit of a message: yields their starts and lengths.
pub fn pieces(length: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..length)
        .step_by(most)
        .map(move |from| (from, most.min(length - from)))
}

/// Returns the lengths of the ranks' messages from what each has sent: eight bytes, little-endian.
#[cfg(any(feature = "mpi", feature = "nccl"))]
fn lengths(all: &[u8]) -> anyhow::Result<Vec<usize>> {
    let (numbers, _) = all.as_chunks::<8>();
    let lengths = numbers.iter().map(|bytes| usize::try_from(u64::from_le_bytes(*bytes)));
    Ok(lengths.collect::<Result<_, _>>()?)
}

/// Communication between ranks. Every call is made by all of them, in the same order.
///
/// # Errors
/// All calls fail with the numbers of ranks that did not arrive in time, or if the transport breaks down.
pub trait Communicator {
    /// Position of this process.
    fn place(&self) -> RankInfo;

    /// Rank of this process, from 0.
    fn rank(&self) -> usize {
        self.place().rank
    }

    /// Number of ranks.
    fn world_size(&self) -> usize {
        self.place().world_size
    }

    /// Sums all ranks' vectors: (n), f32, on the vector's device. All ranks get the same bits.
    fn all_reduce(&self, numbers: &Tensor) -> anyhow::Result<Tensor>;

    /// Gathers the bytes of each rank, by rank. Lengths may differ.
    fn all_gather(&self, bytes: &[u8]) -> anyhow::Result<Vec<Vec<u8>>>;

    /// Returns rank 0's bytes; those of other ranks are ignored.
    fn broadcast(&self, bytes: Vec<u8>) -> anyhow::Result<Vec<u8>>;

    /// Waits until all ranks have made this call.
    fn barrier(&self) -> anyhow::Result<()>;

    /// Returns the bytes sent and the time spent since the start.
    fn traffic(&self) -> Traffic;

    /// Returns an all-gather for sharded weights; None with a single rank.
    fn sharing(&self) -> Option<Arc<dyn AllGather>> {
        None
    }

    /// Shuts down the communication in order. A failed rank must not call this: it just exits.
    fn finish(&self);

    /// Returns true if messages are carried at all, which a single process may not need.
    fn is_distributed(&self) -> bool {
        self.world_size() > 1
    }

    /// Returns true for rank 0, which writes files and logs for all.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Returns true if any rank passes true.
    fn any(&self, yes: bool) -> anyhow::Result<bool> {
        if self.world_size() == 1 {
            return Ok(yes);
        }
        Ok(self.all_gather(&[u8::from(yes)])?.concat().contains(&1))
    }
}

impl dyn Communicator + '_ {
    /// Broadcasts rank 0's value as JSON; the values of others are ignored.
    pub fn broadcast_json<T: Serialize + DeserializeOwned>(&self, value: &T) -> anyhow::Result<T> {
        Ok(serde_json::from_slice(&self.broadcast(serde_json::to_vec(value)?)?)?)
    }
}

/// Puts numbers together of which each rank has a part. As with all calls, ranks begin in the same order.
pub trait AllGather: Send + Sync {
    /// Position of this process.
    fn place(&self) -> RankInfo;

    /// Rank of this process, from 0.
    fn rank(&self) -> usize {
        self.place().rank
    }

    /// Number of ranks.
    fn world_size(&self) -> usize {
        self.place().world_size
    }

    /// Begins to gather the ranks' parts: (n) each, on the CPU or a GPU, of one floating-point type.
    fn begin(&self, part: &Tensor) -> anyhow::Result<Box<dyn Pending>>;
}

/// A gather in progress.
pub trait Pending: Send {
    /// Waits for the result: (N n), by rank, on the CPU or the parts' GPU.
    fn end(self: Box<Self>) -> anyhow::Result<Tensor>;
}

/// Communication of one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Traffic {
    /// Bytes sent.
    pub bytes: u64,
    /// Time from the arrival of the last rank until the transfer was complete.
    pub moving: Duration,
    /// Time until the last rank arrived.
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

/// A failure that another rank reports, usually rank 0.
#[derive(Debug)]
pub struct ReportedByRankZero;

impl fmt::Display for ReportedByRankZero {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rank 0 reports why the run ends")
    }
}

impl std::error::Error for ReportedByRankZero {}

/// Connects this process with the other ranks named by the environment. Ranks started by MPI use MPI if this build
/// supports it; all others use NCCL.
///
/// # Errors
/// Fails if the environment contradicts itself, if this build cannot connect the ranks, or if some did not arrive.
pub fn open(config: &Config) -> anyhow::Result<Box<dyn Communicator>> {
    let place = RankInfo::here()?;
    #[cfg(feature = "mpi")]
    if place.starter == Starter::Mpi && place.world_size > 1 {
        return Ok(Box::new(mpi::Mpi::open(&place, config.timeout())?));
    }
    // Also for a single rank if a launcher started it, so that one GPU is enough to test it.
    #[cfg(feature = "nccl")]
    if place.world_size > 1 || (place.starter == Starter::Environment && nccl::gpus() > 0) {
        return Ok(Box::new(nccl::Nccl::open(&place, config.timeout())?));
    }
    let _ = config; // unused without the features
    match place.world_size {
        1 => Ok(Box::new(Single)),
        _ => Err(unconnected(&place)),
    }
}

/// Error for ranks that this build cannot connect.
fn unconnected(place: &RankInfo) -> anyhow::Error {
    let RankInfo {
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
        "this is rank {rank} of {world_size} ({starter}), but it cannot connect to the others: this vtrain was built \
         {built}. {advice}"
    )
}
