//! Where the frozen matrices of a transformer's blocks are between two uses. Layers do not know: a block's matrices are
//! fetched before it runs ([`Shards::fetch`]).

use std::fmt;
use std::sync::Arc;

use super::shards::Shards;
use crate::distributed::AllGather;

/// Place of the blocks' frozen matrices.
#[derive(Clone, Default)]
pub enum Residency {
    /// Whole, in this process.
    #[default]
    Whole,
    /// A part on each rank ([`Shards`]).
    Sharded(Arc<dyn AllGather>),
}

impl Residency {
    /// Returns the storage for the blocks of one model; None if each layer has its own matrices.
    pub fn shards(&self) -> Option<Arc<Shards>> {
        match self {
            Self::Whole => None,
            Self::Sharded(ranks) => Some(Arc::new(Shards::new(ranks.clone()))),
        }
    }

    /// Returns the number of ranks that share them.
    pub fn ranks(&self) -> usize {
        match self {
            Self::Whole => 1,
            Self::Sharded(ranks) => ranks.world_size(),
        }
    }
}

impl fmt::Debug for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("Whole"),
            Self::Sharded(ranks) => write!(f, "Sharded({} of {})", ranks.rank(), ranks.world_size()),
        }
    }
}
