//! Starts and supervises the ranks of a run, as torchrun does.
//!
//! ```text
//! attempt   all ranks, from their start until the last one has ended
//! output    their lines, prefixed with their ranks, buffered for error reports
//! failure   how the first of them ended, and its last lines
//! ```
//!
//! Two ways to start: each rank as a child process ([`processes`]), or all by `mpirun` ([`mpirun`]).

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, SystemTime};

pub mod gpus;
pub mod lines;
pub mod mpirun;
pub mod processes;
pub mod signals;

use lines::Lines;
use signals::Asked;

/// Variable set for ranks whose lines get a prefix.
const WATCHED: &str = "VTRAIN_LAUNCHED";

/// Variable with the start of the first attempt, in seconds since 1970, for ranks that were restarted.
const RESTARTED: &str = "VTRAIN_RESTARTED";

/// Returns the start of the first attempt, if `vtrain launch` restarted this process after a failure.
pub fn restarted_since() -> Option<SystemTime> {
    let since = std::env::var(RESTARTED).ok()?.parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since))
}

/// Returns true if this process was started by `vtrain launch`.
pub fn is_watched() -> bool {
    std::env::var_os(WATCHED).is_some()
}

/// Returns the prefix of a rank's lines.
pub fn prefix(rank: usize) -> String {
    format!("[rank {rank}] ")
}

/// A job to start.
#[derive(Debug, Clone)]
pub struct Job {
    /// Program that each rank runs.
    pub program: PathBuf,
    /// Arguments of the program.
    pub args: Vec<String>,
    /// Ranks on this machine.
    pub nproc_per_node: usize,
    /// Machines.
    pub nnodes: usize,
    /// Index of this machine, from 0.
    pub node_rank: usize,
    /// Name or address of the first machine.
    pub master_addr: String,
    /// TCP port of the rendezvous.
    pub master_port: u16,
    /// Start of the first attempt, for a later one.
    pub restarted_since: Option<SystemTime>,
}

impl Job {
    /// Number of ranks on all machines.
    pub fn world_size(&self) -> usize {
        self.nproc_per_node * self.nnodes
    }

    /// Sets the environment variables that every rank gets from any launcher.
    fn tell(&self, command: &mut Command) {
        command.env(WATCHED, "1");
        if let Some(since) = self.restarted_since {
            let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            command.env(RESTARTED, since.as_secs().to_string());
        }
        processes::share_cores(command, self.nproc_per_node);
    }
}

/// Outcome of an attempt.
#[derive(Debug)]
pub enum ExitKind {
    /// All ranks ended with exit code 0.
    Done,
    /// Interrupted by the user.
    Interrupted,
    /// A rank failed, and the others were ended.
    Died(RankFailure),
}

/// The first rank that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankFailure {
    /// Rank, if known.
    pub rank: Option<usize>,
    /// Manner of its end.
    pub how: Termination,
}

/// Manner in which a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Termination {
    /// An exit code other than 0.
    Exit(i32),
    /// A signal.
    Signal(i32),
}

impl fmt::Display for RankFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Some(rank) => write!(f, "rank {rank} ")?,
            None => f.write_str("a rank ")?,
        }
        match self.how {
            Termination::Exit(code) => write!(f, "ended with exit code {code}"),
            Termination::Signal(signal) => write!(f, "was killed by signal {signal}{}", name_of(signal)),
        }
    }
}

fn name_of(signal: i32) -> &'static str {
    match signal {
        libc::SIGKILL => " (SIGKILL; usually out of memory, unless somebody sent it)",
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGTERM => " (SIGTERM)",
        libc::SIGINT => " (SIGINT)",
        libc::SIGBUS => " (SIGBUS)",
        _ => "",
    }
}

impl Termination {
    /// Returns None for success.
    fn of(status: ExitStatus) -> Option<Self> {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(0), _) => None,
            (Some(code), _) => Some(Self::Exit(code)),
            (None, signal) => Some(Self::Signal(signal.unwrap_or(0))),
        }
    }
}

/// Launchers of the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter {
    /// vtrain itself, as processes of this machine.
    Processes,
    /// An MPI's `mpirun`.
    Mpirun,
}

/// Starts the ranks and returns when the last one has ended, after reporting the first failure.
///
/// # Errors
/// Fails if a program cannot be started or log files cannot be written.
pub fn attempt(job: &Job, starter: Starter, lines: Lines, asked: &Asked) -> anyhow::Result<ExitKind> {
    match starter {
        Starter::Processes => processes::attempt(job, lines, asked),
        Starter::Mpirun => mpirun::attempt(job, lines, asked),
    }
}
