//! Launches ranks by `mpirun`: Open MPI's, or Hydra's (MPICH, Intel MPI). It connects them, and ends all when one
//! fails.
//!
//! It prefixes each line with its rank, `[1,3]<stderr>:` or `[3] `, which is parsed here; and it reports how the first
//! rank failed.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::lines::{self, Line, Lines, Stream};
use super::processes::die_with_us;
use super::signals::{self, Asked};
use super::{ExitKind, Job, RankFailure, Termination};

/// Polling interval.
const LOOK: Duration = Duration::from_millis(50);

/// Time that mpirun has to end its ranks before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Implementation of mpirun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Open MPI.
    OpenMpi,
    /// MPICH and others with the Hydra launcher.
    Hydra,
}

impl Dialect {
    /// Parses `mpirun --version`.
    ///
    /// # Errors
    /// Fails without mpirun.
    pub fn of_mpirun() -> anyhow::Result<Self> {
        let asked = Command::new("mpirun").arg("--version").output();
        let asked =
            asked.context("mpirun cannot be started: install Open MPI or MPICH, the one vtrain was built with")?;
        let said = String::from_utf8_lossy(&asked.stdout);
        Ok(match said.contains("Open MPI") || said.contains("OpenRTE") {
            true => Self::OpenMpi,
            false => Self::Hydra,
        })
    }

    /// Returns the options before the program.
    fn options(self, job: &Job) -> Vec<String> {
        let mut options: Vec<String> = match self {
            // Cores are shared by the number of threads: bound to one core, a rank would be slow.
            Self::OpenMpi => ["--tag-output", "--bind-to", "none", "--oversubscribe"]
                .map(String::from)
                .to_vec(),
            Self::Hydra => ["-prepend-rank"].map(String::from).to_vec(),
        };
        // SAFETY: only returns a number.
        if self == Self::OpenMpi && unsafe { libc::geteuid() } == 0 {
            options.push("--allow-run-as-root".into());
        }
        if job.nnodes > 1 {
            let each = job.nproc_per_node;
            options.extend(match self {
                Self::OpenMpi => ["--map-by".into(), format!("ppr:{each}:node:oversubscribe")],
                Self::Hydra => ["-ppn".into(), each.to_string()],
            });
        }
        options.extend(["-np".into(), job.world_size().to_string()]);
        options
    }

    /// Returns options that pass the variables set for `command` to other machines. Hydra passes all on.
    fn passing_on(self, command: &Command) -> Vec<String> {
        let set = command.get_envs();
        let set = set.filter_map(|(name, value)| Some(format!("{}={}", name.to_str()?, value?.to_str()?)));
        match self {
            Self::OpenMpi => set.flat_map(|variable| ["-x".into(), variable]).collect(),
            Self::Hydra => Vec::new(),
        }
    }

    /// Parses the rank of a line.
    pub fn line(self, stream: Stream, text: String) -> Line {
        let tag = match self {
            Self::OpenMpi => tag_of_openmpi(&text),
            Self::Hydra => tag_of_hydra(&text),
        };
        match tag {
            Some((rank, rest)) => Line {
                rank: Some(rank),
                stream,
                text: rest.to_string(),
            },
            None => Line {
                rank: None,
                stream,
                text,
            },
        }
    }
}

/// Parses `[1,3]<stderr>:text`, in version 5 `[name@1,3]<stderr>: text`.
fn tag_of_openmpi(text: &str) -> Option<(usize, &str)> {
    let (name, rest) = text.strip_prefix('[')?.split_once("]<std")?;
    let rest = rest.strip_prefix("err>:").or_else(|| rest.strip_prefix("out>:"))?;
    let (_, rank) = name.rsplit_once(',')?;
    let rest = match name.contains('@') {
        true => rest.strip_prefix(' ').unwrap_or(rest),
        false => rest,
    };
    Some((rank.parse().ok()?, rest))
}

/// Parses `[3] text`.
fn tag_of_hydra(text: &str) -> Option<(usize, &str)> {
    let (rank, rest) = text.strip_prefix('[')?.split_once(']')?;
    Some((rank.parse().ok()?, rest.strip_prefix(' ').unwrap_or(rest)))
}

/// Returns how the first rank failed, from mpirun's output; `how` is how mpirun ended.
pub fn death<'a>(said: impl Iterator<Item = &'a str>, how: Termination) -> RankFailure {
    let said = said.collect::<Vec<_>>().join(" ");
    let words: Vec<&str> = said.split_whitespace().collect();
    let after = |names: &[&str]| {
        let same = |at: &[&str]| at.iter().zip(names).all(|(word, name)| word.eq_ignore_ascii_case(name));
        let at = words.windows(names.len()).position(same)?;
        let digits = words.get(at + names.len())?;
        let number: String = digits.chars().take_while(char::is_ascii_digit).collect();
        number.parse::<usize>().ok()
    };
    let process_name = || {
        let at = words.windows(2).position(|pair| pair == ["Process", "name:"])?;
        words
            .get(at + 2)?
            .rsplit_once("],")?
            .1
            .trim_end_matches(']')
            .parse()
            .ok()
    };
    let rank = after(&["process", "rank"])
        .or_else(process_name)
        .or_else(|| after(&["invoked", "on", "rank"]))
        .or_else(|| after(&["=", "RANK"]));
    let signal = after(&["exited", "on", "signal"]).or_else(|| after(&["KILLED", "BY", "SIGNAL:"]));
    RankFailure {
        rank,
        how: match (signal, how) {
            (Some(signal), _) => Termination::Signal(signal as i32),
            (None, Termination::Exit(code)) if code > 128 && code != 130 => Termination::Signal(code - 128),
            (None, how) => how,
        },
    }
}

/// Starts the ranks and returns when the last one has ended.
pub fn attempt(job: &Job, mut lines: Lines, asked: &Asked) -> anyhow::Result<ExitKind> {
    let dialect = Dialect::of_mpirun()?;
    let mut command = Command::new("mpirun");
    job.tell(&mut command);
    let told = dialect.passing_on(&command);
    command.args(dialect.options(job)).args(told);
    command.arg(&job.program).args(&job.args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.process_group(0); // Ctrl-C goes to us only: mpirun would kill the ranks before they save a checkpoint
    die_with_us(&mut command);
    let mut child = command.spawn().context("mpirun cannot be started")?;
    let ended = watch(&mut child, dialect, &mut lines, asked);
    if ended.is_err() {
        signals::send(&child, libc::SIGTERM);
        let _ = child.wait();
    }
    ended
}

fn watch(child: &mut Child, dialect: Dialect, lines: &mut Lines, asked: &Asked) -> anyhow::Result<ExitKind> {
    let (send, receive) = channel();
    if let Some(out) = child.stdout.take() {
        lines::follow(out, send.clone(), move |text| dialect.line(Stream::Out, text));
    }
    if let Some(err) = child.stderr.take() {
        lines::follow(err, send.clone(), move |text| dialect.line(Stream::Err, text));
    }
    drop(send);
    let (mut passed_on, mut told_to_end): (usize, Option<Instant>) = (0, None);
    let status = loop {
        if let Ok(line) = receive.recv_timeout(LOOK) {
            lines.take(&line)?;
        }
        for line in receive.try_iter() {
            lines.take(&line)?;
        }
        if let Some(status) = child.try_wait().context("waiting for mpirun")? {
            break status;
        }
        if asked.times() > passed_on {
            passed_on = asked.times();
            // mpirun passes the first one on; at the second request it ends the ranks at once.
            let signal = if passed_on == 1 { libc::SIGUSR1 } else { libc::SIGTERM };
            signals::send(child, signal);
            if passed_on > 1 {
                told_to_end.get_or_insert_with(Instant::now);
            }
        }
        if told_to_end.is_some_and(|since| since.elapsed() > GRACE) {
            signals::send(child, libc::SIGKILL);
        }
    };
    // Reads the remaining output, with a time limit: a rank that outlives mpirun keeps its end open.
    while let Ok(line) = receive.recv_timeout(4 * LOOK) {
        lines.take(&line)?;
    }
    Ok(match Termination::of(status) {
        None => ExitKind::Done,
        Some(_) if passed_on > 0 => ExitKind::Interrupted,
        Some(how) => {
            let death = death(lines.of_starter(), how);
            lines.tell(&death);
            ExitKind::Died(death)
        }
    })
}
