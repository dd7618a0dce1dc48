//! Encoding divided among ranks: in each round every rank encodes one item, and all exchange the results.
//!
//! Item k belongs to rank (k mod N) in round k / N. A rank without an item in the last round reports so, and is not
//! waited for; a failure reaches all in the same round, and rank 0 reports it.

use anyhow::anyhow;
use serde::{Deserialize, Serialize};

use super::interrupted;
use crate::commands::ranks::shared;
use crate::commands::{Exit, Failure, OrExit};
use crate::distributed::Communicator;

/// Result for an item that did not end the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoded {
    Done,
    /// A caption that was truncated by this number of tokens.
    Shortened(usize),
    /// Left out, for this reason.
    Skipped(String),
}

/// Result in the form that is exchanged.
#[derive(Serialize, Deserialize)]
enum News {
    Nothing,
    Encoded(Encoded),
    Failed { exit: Exit, error: String },
}

/// Returns the indices that belong to this rank.
pub fn share(ranks: &dyn Communicator, count: usize) -> impl Iterator<Item = usize> {
    (ranks.rank()..count).step_by(ranks.world_size())
}

/// Calls `encode` for each index of this rank's share, and `heard`, in order, for every index of all ranks.
///
/// # Errors
/// Returns the first failure of any rank, reported by rank 0.
pub fn go_round(
    ranks: &dyn Communicator,
    count: usize,
    mut encode: impl FnMut(usize) -> Result<Encoded, Failure>,
    mut heard: impl FnMut(usize, Encoded),
) -> Result<(), Failure> {
    for first in (0..count).step_by(ranks.world_size()) {
        let own = first + ranks.rank();
        let encoded = (own < count).then(|| encode(own)).transpose();
        for (place, encoded) in (first..).zip(exchange(ranks, encoded)?) {
            if let Some(encoded) = encoded {
                heard(place, encoded);
            }
        }
    }
    Ok(())
}

/// Exchanges the results of a round, by rank.
fn exchange(
    ranks: &dyn Communicator,
    encoded: Result<Option<Encoded>, Failure>,
) -> Result<Vec<Option<Encoded>>, Failure> {
    if ranks.world_size() == 1 {
        return Ok(vec![encoded?]);
    }
    let news = match encoded {
        Ok(None) => News::Nothing,
        Ok(Some(encoded)) => News::Encoded(encoded),
        Err(Failure { exit, error }) => News::Failed {
            exit,
            error: format!("{error:#}"),
        },
    };
    let news = serde_json::to_vec(&news).or_exit(Exit::Training)?;
    let mut each = Vec::new();
    for (rank, news) in ranks.all_gather(&news).or_exit(Exit::Training)?.iter().enumerate() {
        each.push(match serde_json::from_slice(news).or_exit(Exit::Training)? {
            News::Nothing => None,
            News::Encoded(encoded) => Some(encoded),
            News::Failed { exit, error } => {
                let failure = match exit {
                    Exit::Interrupted => interrupted(),
                    _ => Failure {
                        exit,
                        error: anyhow!("rank {rank}: {error}"),
                    },
                };
                return Err(shared(ranks, failure));
            }
        });
    }
    Ok(each)
}
