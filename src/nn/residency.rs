//! Where the frozen matrices of a model's blocks are between two uses. Layers do not know: a block's matrices are fetched
//! before it runs ([`LentBlocks::fetch`]).

use std::fmt;
use std::sync::Arc;

use candle_core::Device;

use super::lent::{BlockKeeper, LentBlocks};
pub use super::resident_share::ResidentShare;
#[cfg(feature = "cuda")]
use super::ring::{Ring, cuda::Gpu};
use super::shards::Shards;
use super::stream::Streamed;
use crate::distributed::AllGather;

/// Place of the blocks' frozen matrices.
#[derive(Clone, Default)]
pub enum Residency {
    /// Whole, in this process.
    #[default]
    Whole,
    /// A part on each rank ([`Shards`]).
    Sharded(Arc<dyn AllGather>),
    /// In files ([`Streamed`]), or for a GPU in main memory ([`super::ring`]), from where each is brought before it runs, but
    /// for those that stay.
    Streamed(ResidentShare),
    /// Same for a part on each rank.
    StreamedShards(Arc<dyn AllGather>, ResidentShare),
}

impl Residency {
    /// Returns the blocks of one model on `device`; None if each layer has its own matrices.
    pub fn lent_blocks(&self, device: &Device) -> Option<Arc<LentBlocks>> {
        let keeper: Box<dyn BlockKeeper> = match self {
            Self::Whole => return None,
            Self::Sharded(ranks) => Box::new(Shards::new(ranks.clone())),
            Self::Streamed(resident) => streamed(device, *resident),
            Self::StreamedShards(ranks, resident) => {
                let streamed = streamed(device, *resident);
                Box::new(Shards::streamed(ranks.clone(), streamed, device))
            }
        };
        Some(Arc::new(LentBlocks::new(keeper)))
    }

    /// Returns the share of blocks that is in memory at least.
    pub fn resident_share(&self) -> f64 {
        match self {
            Self::Whole => 1.0,
            Self::Sharded(ranks) => 1.0 / ranks.world_size() as f64,
            Self::Streamed(ResidentShare::Auto) | Self::StreamedShards(_, ResidentShare::Auto) => 0.0,
            Self::Streamed(ResidentShare::Share(share)) => *share,
            Self::StreamedShards(ranks, ResidentShare::Share(share)) => share / ranks.world_size() as f64,
        }
    }

    /// True if a block that is kept for the way back takes memory that others need.
    pub fn lends_in_turn(&self) -> bool {
        match self {
            Self::Whole => false,
            Self::Sharded(ranks) | Self::StreamedShards(ranks, ResidentShare::Share(1.0)) => ranks.world_size() > 1,
            Self::StreamedShards(..) => true,
            Self::Streamed(resident) => *resident != ResidentShare::Share(1.0),
        }
    }

    /// Returns the number of ranks that share them.
    pub fn ranks(&self) -> usize {
        match self {
            Self::Whole | Self::Streamed(_) => 1,
            Self::Sharded(ranks) | Self::StreamedShards(ranks, _) => ranks.world_size(),
        }
    }
}

/// Returns the keeper of streamed blocks that run on `device`.
fn streamed(device: &Device, resident: ResidentShare) -> Box<dyn BlockKeeper> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(gpu) = device {
        return Box::new(Ring::new(Gpu::new(gpu), resident));
    }
    Box::new(Streamed::new(device, resident))
}

impl fmt::Debug for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("Whole"),
            Self::Sharded(ranks) => write!(f, "Sharded({} of {})", ranks.rank(), ranks.world_size()),
            Self::Streamed(resident) => write!(f, "Streamed({resident:?})"),
            Self::StreamedShards(ranks, resident) => {
                write!(
                    f,
                    "StreamedShards({} of {}, {resident:?})",
                    ranks.rank(),
                    ranks.world_size()
                )
            }
        }
    }
}
