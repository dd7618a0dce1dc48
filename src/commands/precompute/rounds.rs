//! Encoding shared out over ranks: in each round every rank encodes one thing, and all hear how it went.
//!
//! Thing k is rank (k mod N)'s in round k / N. A rank whose things are all done says so in the last round, so nobody waits
//! for something that does not come; one that fails is heard of by all in the same round, and rank 0 tells.

use anyhow::anyhow;
use serde::{Deserialize, Serialize};

use super::interrupted;
use crate::commands::ranks::shared;
use crate::commands::{Exit, Failure, OrExit};
use crate::dist::Communicator;

/// What became of one thing, where it did not end the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoded {
    Done,
    /// A caption that lost so many tokens at its end.
    Shortened(usize),
    /// It was left out, for this reason.
    Skipped(String),
}

/// The same, as it travels.
#[derive(Serialize, Deserialize)]
enum News {
    Nothing,
    Encoded(Encoded),
    Failed { exit: Exit, error: String },
}

/// The places that are a rank's own, of so many.
pub fn share(ranks: &dyn Communicator, count: usize) -> impl Iterator<Item = usize> {
    (ranks.rank()..count).step_by(ranks.world_size())
}

/// Calls `encode` for each place of this rank's share, and `heard`, in order, for every place of all ranks.
///
/// # Errors
/// The first failure of any rank, told by rank 0.
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

/// What all ranks did in a round, by rank.
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
