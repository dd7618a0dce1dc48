//! Launches ranks as child processes on this machine, with torchrun's variables in their environment.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::lines::{self, Line, Lines, Stream};
use super::signals::{self, Asked};
use super::{ExitKind, Job, RankFailure, Termination};

/// Polling interval.
const LOOK: Duration = Duration::from_millis(50);

/// Time that ranks have to end by themselves after one has failed.
const GRACE: Duration = Duration::from_secs(5);

/// A running rank.
struct Rank {
    number: usize,
    child: Child,
    ended: Option<Option<Termination>>,
}

/// Starts the ranks and returns when the last one has ended.
pub fn attempt(job: &Job, mut lines: Lines, asked: &Asked) -> anyhow::Result<ExitKind> {
    let (send, receive) = channel();
    let mut ranks = Vec::new();
    for local in 0..job.nproc_per_node {
        match start(job, local, &send) {
            Ok(rank) => ranks.push(rank),
            Err(error) => {
                ranks.iter_mut().for_each(Rank::kill);
                return Err(error);
            }
        }
    }
    drop(send);
    let ended = watch(&mut ranks, &mut lines, &receive, asked);
    if ended.is_err() {
        ranks.iter_mut().for_each(Rank::kill);
    }
    ended
}

fn watch(ranks: &mut [Rank], lines: &mut Lines, receive: &Receiver<Line>, asked: &Asked) -> anyhow::Result<ExitKind> {
    let mut death: Option<(RankFailure, Instant)> = None;
    let mut passed_on = 0;
    loop {
        if let Ok(line) = receive.recv_timeout(LOOK) {
            lines.take(&line)?;
        }
        for line in receive.try_iter() {
            lines.take(&line)?;
        }
        for rank in ranks.iter_mut() {
            rank.look()?;
        }
        if asked.times() > passed_on {
            passed_on = asked.times();
            // At the first request ranks save a checkpoint; at the second they are killed.
            let signal = if passed_on == 1 { libc::SIGINT } else { libc::SIGKILL };
            ranks.iter().for_each(|rank| rank.send(signal));
        }
        let first = ranks.iter().find(|rank| matches!(rank.ended, Some(Some(_))));
        if let (None, Some(rank), 0) = (&death, first, passed_on) {
            drain(lines, receive)?;
            let how = rank.ended.flatten().unwrap_or(Termination::Exit(0));
            let found = RankFailure {
                rank: Some(rank.number),
                how,
            };
            lines.tell(&found);
            lines.silence();
            ranks.iter().for_each(|rank| rank.send(libc::SIGTERM));
            death = Some((found, Instant::now()));
        }
        if death.as_ref().is_some_and(|(_, since)| since.elapsed() > GRACE) {
            ranks.iter().for_each(|rank| rank.send(libc::SIGKILL));
        }
        if ranks.iter().all(|rank| rank.ended.is_some()) {
            drain(lines, receive)?;
            let all_well = ranks.iter().all(|rank| rank.ended == Some(None));
            return Ok(match death {
                Some((death, _)) => ExitKind::Died(death),
                None if all_well => ExitKind::Done,
                None => ExitKind::Interrupted,
            });
        }
    }
}

/// Processes the remaining output of a rank that has ended.
fn drain(lines: &mut Lines, receive: &Receiver<Line>) -> anyhow::Result<()> {
    while let Ok(line) = receive.recv_timeout(LOOK) {
        lines.take(&line)?;
    }
    Ok(())
}

fn start(job: &Job, local: usize, send: &Sender<Line>) -> anyhow::Result<Rank> {
    let number = job.node_rank * job.nproc_per_node + local;
    let mut command = Command::new(&job.program);
    command.args(&job.args).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let numbers = [
        ("RANK", number),
        ("LOCAL_RANK", local),
        ("WORLD_SIZE", job.world_size()),
        ("LOCAL_WORLD_SIZE", job.nproc_per_node),
        ("MASTER_PORT", job.master_port.into()),
    ];
    command.envs(numbers.map(|(name, number)| (name, number.to_string())));
    command.env("MASTER_ADDR", &job.master_addr);
    job.tell(&mut command);
    command.process_group(0); // Ctrl-C goes to us only, and we pass it on
    die_with_us(&mut command);
    let started = command.spawn();
    let mut child = started.with_context(|| format!("{} cannot be started", job.program.display()))?;
    let line = move |stream| {
        move |text| Line {
            rank: Some(number),
            stream,
            text,
        }
    };
    if let Some(out) = child.stdout.take() {
        lines::follow(out, send.clone(), line(Stream::Out));
    }
    if let Some(err) = child.stderr.take() {
        lines::follow(err, send.clone(), line(Stream::Err));
    }
    Ok(Rank {
        number,
        child,
        ended: None,
    })
}

/// Divides the machine's cores among its ranks, unless the environment sets the threads.
pub fn share_cores(command: &mut Command, ranks: usize) {
    let name = "RAYON_NUM_THREADS";
    if ranks > 1 && std::env::var_os(name).is_none() {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        command.env(name, (cores / ranks).max(1).to_string());
    }
}

/// Makes the child get SIGTERM when the thread that started it ends for any reason.
pub fn die_with_us(command: &mut Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: prctl may be called between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

impl Rank {
    fn look(&mut self) -> anyhow::Result<()> {
        if self.ended.is_none()
            && let Some(status) = self.child.try_wait().context("waiting for a rank")?
        {
            self.ended = Some(Termination::of(status));
        }
        Ok(())
    }

    fn send(&self, signal: i32) {
        if self.ended.is_none() {
            signals::send(&self.child, signal);
        }
    }

    fn kill(&mut self) {
        self.send(libc::SIGKILL);
        let _ = self.child.wait();
    }
}
