//! Where the frozen matrices of a model's blocks are between two uses. Layers do not know: a block's matrices are fetched
//! before it runs ([`LentBlocks::fetch`]).

use std::fmt;
use std::sync::Arc;

use candle_core::Device;

use super::lent::LentBlocks;
pub use super::resident_share::ResidentShare;
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
    /// In files, from where each is read before it runs, but for those that stay in memory.
    Streamed(ResidentShare),
    /// A part in a file on each rank.
    StreamedShards(Arc<dyn AllGather>, ResidentShare),
}

impl Residency {
    /// Returns the blocks of one model on `device`; None if each layer has its own matrices.
    pub fn lent_blocks(&self, device: &Device) -> Option<Arc<LentBlocks>> {
        Some(Arc::new(match self {
            Self::Whole => return None,
            Self::Sharded(ranks) => LentBlocks::new(Shards::new(ranks.clone())),
            Self::Streamed(resident) => LentBlocks::new(Streamed::new(device, *resident)),
            Self::StreamedShards(ranks, resident) => {
                let streamed = Streamed::new(device, *resident);
                LentBlocks::new(Shards::streamed(ranks.clone(), streamed))
            }
        }))
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
