//! Helpers for verbs that run on several ranks: start, agreement, end.

use std::time::Duration;

use anyhow::anyhow;
use blake3::Hash;

use super::{Exit, Failure, OrExit};
use crate::config::RunConfig;
use crate::distributed::{self, Communicator, ReportedByRankZero};

/// Time that a failed rank leaves rank 0 to report the failure: the launcher ends all once one has ended.
const TO_TELL: Duration = Duration::from_secs(2);

/// Runs `work` on this process as one of the ranks named by the environment.
///
/// A rank that fails exits at once with a non-zero code; its launcher then ends the others.
pub fn run_distributed<T>(
    mut config: RunConfig,
    work: impl FnOnce(&RunConfig, &dyn Communicator) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let ranks = distributed::open(&config.dist).or_exit(Exit::Usage)?;
    config.device = config.device.of_rank(ranks.place().local_rank);
    let done = work(&config, &*ranks);
    match &done {
        Ok(_) => ranks.finish(),
        Err(failure) if failure.error.is::<ReportedByRankZero>() => std::thread::sleep(TO_TELL),
        Err(_) => {}
    }
    done
}

/// Combines the results of the ranks: if one has failed, all do. A failure is reported by the first rank that has it,
/// and by rank 0 alone if it has one itself.
pub fn each<T>(ranks: &dyn Communicator, done: Result<T, Failure>) -> Result<T, Failure> {
    if ranks.world_size() == 1 {
        return done;
    }
    let own = done.as_ref().err().map(|failure| (failure.exit, failure.to_string()));
    let all = ranks.all_gather(&serde_json::to_vec(&own).or_exit(Exit::Training)?);
    let all = all.or_exit(Exit::Training)?;
    let read = |bytes: &Vec<u8>| serde_json::from_slice::<Option<(Exit, String)>>(bytes);
    let all: Vec<_> = all.iter().map(read).collect::<Result<_, _>>().or_exit(Exit::Training)?;
    let told = |exit| Failure {
        exit,
        error: ReportedByRankZero.into(),
    };
    let known = &all[..ranks.rank()];
    match (done, all.iter().flatten().next()) {
        (Ok(done), None) => Ok(done),
        (Ok(_), Some((exit, _))) => Err(told(*exit)),
        (Err(failure), _) => Err(
            match known.contains(&own) || known.first().is_some_and(Option::is_some) {
                true => told(failure.exit),
                false => failure,
            },
        ),
    }
}

/// Failure that all ranks share, which rank 0 reports.
pub fn shared(ranks: &dyn Communicator, failure: Failure) -> Failure {
    match ranks.is_first() {
        true => failure,
        false => Failure {
            exit: failure.exit,
            error: ReportedByRankZero.into(),
        },
    }
}

/// Checks that all ranks have the same value, such as their settings.
///
/// # Errors
/// Names the ranks whose value differs from rank 0's.
pub fn check_consistent(ranks: &dyn Communicator, on: &str, what: Hash) -> Result<(), Failure> {
    let each = ranks.all_gather(what.as_bytes()).or_exit(Exit::Training)?;
    let others: Vec<String> = (0..each.len())
        .filter(|&rank| each[rank] != each[0])
        .map(|rank| rank.to_string())
        .collect();
    if others.is_empty() {
        return Ok(());
    }
    let who = if others.len() == 1 { "rank" } else { "ranks" };
    let error = anyhow!(
        "{who} {} and rank 0 do not have the same {on}: every rank needs the same run file, model and clips, and an \
         output directory and cache that all of them see",
        others.join(", ")
    );
    Err(shared(
        ranks,
        Failure {
            exit: Exit::Usage,
            error,
        },
    ))
}

/// Runs `work` on rank 0 first, then on the others, which find its output.
pub fn first_alone<T>(ranks: &dyn Communicator, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    if ranks.is_first() {
        let done = work()?;
        ranks.barrier().or_exit(Exit::Training)?;
        return Ok(done);
    }
    ranks.barrier().or_exit(Exit::Training)?;
    work()
}
