//! Starting the ranks of a run and watching over them, as torchrun does.
//!
//! ```text
//! attempt   all ranks, from their start until the last one has ended
//! watch     their lines as they come, under their ranks' names, kept for last words
//! death     how the first of them ended, and what it said last
//! ```
//!
//! Two ways to start: each rank as a process of our own ([`processes`]), or all by `mpirun` ([`mpirun`]).

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

/// Tells ranks that somebody puts their names to their lines.
const WATCHED: &str = "VTRAIN_LAUNCHED";

/// Tells ranks that were started again when the first attempt began, in seconds since 1970.
const RESTARTED: &str = "VTRAIN_RESTARTED";

/// Where `vtrain launch` started this process again after a death: when it started the first attempt.
pub fn restarted_since() -> Option<SystemTime> {
    let since = std::env::var(RESTARTED).ok()?.parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since))
}

/// Whether this process was started by `vtrain launch`.
pub fn is_watched() -> bool {
    std::env::var_os(WATCHED).is_some()
}

/// What stands before a rank's lines.
pub fn prefix(rank: usize) -> String {
    format!("[rank {rank}] ")
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Job {
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Ranks on this machine.
    pub nproc_per_node: usize,
    /// Machines.
    pub nnodes: usize,
    /// This machine's number among them.
    pub node_rank: usize,
    pub master_addr: String,
    pub master_port: u16,
    /// When the first attempt began, of a later one.
    pub restarted_since: Option<SystemTime>,
}

impl Job {
    pub fn world_size(&self) -> usize {
        self.nproc_per_node * self.nnodes
    }

    /// What every rank finds in its environment, whoever starts it.
    fn tell(&self, command: &mut Command) {
        command.env(WATCHED, "1");
        if let Some(since) = self.restarted_since {
            let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            command.env(RESTARTED, since.as_secs().to_string());
        }
        processes::share_cores(command, self.nproc_per_node);
    }
}

/// How the ranks ended.
#[derive(Debug)]
pub enum End {
    Done,
    /// Somebody asked for it.
    Interrupted,
    Died(Death),
}

/// The first rank that ended badly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// Where it is known.
    pub rank: Option<usize>,
    pub how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Exit(i32),
    Signal(i32),
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rank {
            Some(rank) => write!(f, "rank {rank} ")?,
            None => f.write_str("a rank ")?,
        }
        match self.how {
            How::Exit(code) => write!(f, "ended with exit code {code}"),
            How::Signal(signal) => write!(f, "was killed by signal {signal}{}", name_of(signal)),
        }
    }
}

fn name_of(signal: i32) -> &'static str {
    match signal {
        libc::SIGKILL => " (SIGKILL; where nobody sent it, memory ran out)",
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGTERM => " (SIGTERM)",
        libc::SIGINT => " (SIGINT)",
        libc::SIGBUS => " (SIGBUS)",
        _ => "",
    }
}

impl How {
    /// None where all went well.
    fn of(status: ExitStatus) -> Option<Self> {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(0), _) => None,
            (Some(code), _) => Some(Self::Exit(code)),
            (None, signal) => Some(Self::Signal(signal.unwrap_or(0))),
        }
    }
}

/// Who starts the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter {
    Processes,
    Mpirun,
}

/// Starts the ranks and returns when the last one has ended, the first one's death told.
///
/// # Errors
/// A program that cannot be started; log files that cannot be written.
pub fn attempt(job: &Job, starter: Starter, lines: Lines, asked: &Asked) -> anyhow::Result<End> {
    match starter {
        Starter::Processes => processes::attempt(job, lines, asked),
        Starter::Mpirun => mpirun::attempt(job, lines, asked),
    }
}
