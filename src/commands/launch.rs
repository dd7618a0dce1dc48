//! `vtrain launch`: runs several processes, as torchrun does.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::SystemTime;

use anyhow::{anyhow, ensure};
use clap::ValueEnum;

use super::{Exit, Failure, OrExit};
use crate::launch::lines::Lines;
use crate::launch::signals::Asked;
use crate::launch::{self, ExitKind, Job, RankFailure, Starter, Termination, gpus};

/// Start a run on several processes, and end all when one fails
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Processes on each machine: a number, gpu (one per GPU), or auto (the same, and 1 without a GPU)
    #[arg(long, value_name = "N|auto|gpu", default_value = "1")]
    nproc_per_node: PerNode,
    /// Machines
    #[arg(long, value_name = "N", default_value_t = 1)]
    nnodes: usize,
    /// Index of this machine, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    node_rank: usize,
    /// Host of rank 0
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    master_addr: String,
    /// Port of rank 0
    #[arg(long, value_name = "PORT", default_value_t = 29500)]
    master_port: u16,
    /// Name of this run's folder below --log-dir
    #[arg(long, value_name = "NAME", default_value = "none")]
    rdzv_id: String,
    /// Number of restarts of all processes after a failure, from the newest checkpoint
    #[arg(long, value_name = "R", default_value_t = 0)]
    max_restarts: usize,
    /// Write the output of every rank to D/RDZV_ID/attempt-N/RANK/
    #[arg(long, value_name = "D")]
    log_dir: Option<PathBuf>,
    /// Communication: nccl (GPUs), or mpi (mpirun starts the processes). Default: what this vtrain was built with
    #[arg(long, value_name = "nccl|mpi")]
    backend: Option<Backend>,
    /// Command of each process: the arguments of vtrain itself, such as --config run.yaml
    #[arg(last = true, required = true, value_name = "ARGS")]
    args: Vec<String>,
}

/// `--nproc-per-node`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PerNode {
    Auto,
    Gpu,
    Number(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    Nccl,
    Mpi,
}

impl FromStr for PerNode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse::<usize>()) {
            ("auto", _) => Ok(Self::Auto),
            ("gpu", _) => Ok(Self::Gpu),
            (_, Ok(number)) if number > 0 => Ok(Self::Number(number)),
            _ => Err("is not a number of processes; use 1 or more, auto, or gpu".into()),
        }
    }
}

impl PerNode {
    fn count(self) -> anyhow::Result<usize> {
        match (self, gpus::count()) {
            (Self::Number(number), _) => Ok(number),
            (Self::Auto, gpus) => Ok(gpus.max(1)),
            (Self::Gpu, 0) => Err(anyhow!("--nproc-per-node gpu: there is no NVIDIA GPU on this machine")),
            (Self::Gpu, gpus) => Ok(gpus),
        }
    }
}

/// Runs `vtrain launch`: starts the ranks and waits for them.
///
/// # Errors
/// Fails for an impossible number of ranks, and with the exit code of the first rank that failed.
pub fn run(args: Args) -> Result<(), Failure> {
    let job = job(&args).or_exit(Exit::Usage)?;
    let starter = starter(&args, &job).or_exit(Exit::Usage)?;
    let asked = Asked::catch().or_exit(Exit::Training)?;
    let (mut job, began) = (job, SystemTime::now());
    for restarts in 0.. {
        let folder = args.log_dir.as_ref();
        let folder = folder.map(|dir| dir.join(&args.rdzv_id).join(format!("attempt-{restarts}")));
        let all = log::log_enabled!(log::Level::Debug);
        let lines = Lines::new(job.world_size(), all, folder.as_deref());
        match launch::attempt(&job, starter, lines, &asked).or_exit(Exit::Training)? {
            ExitKind::Done => break,
            ExitKind::Interrupted => {
                return Err(Failure {
                    exit: Exit::Interrupted,
                    error: anyhow!("interrupted"),
                });
            }
            ExitKind::Died(death) if restarts < args.max_restarts && may_pass(&death) => {
                let (next, most) = (restarts + 1, args.max_restarts);
                log::warn!("{death}; all ranks start again from the newest checkpoint (restart {next} of {most})");
                job.restarted_since = Some(began);
            }
            ExitKind::Died(death) => return Err(failure(&death)),
        }
    }
    Ok(())
}

fn job(args: &Args) -> anyhow::Result<Job> {
    ensure!(args.nnodes > 0, "--nnodes: must be at least 1, got 0");
    ensure!(
        args.node_rank < args.nnodes,
        "--node-rank {}: machines go from 0 to {}",
        args.node_rank,
        args.nnodes - 1
    );
    ensure!(
        !matches!(args.args[0].as_str(), "launch"),
        "launch cannot be launched itself; name another verb after --"
    );
    Ok(Job {
        program: std::env::current_exe()?,
        args: args.args.clone(),
        nproc_per_node: args.nproc_per_node.count()?,
        nnodes: args.nnodes,
        node_rank: args.node_rank,
        master_addr: args.master_addr.clone(),
        master_port: args.master_port,
        restarted_since: None,
    })
}

/// Returns the launcher, if this build can connect the ranks.
fn starter(args: &Args, job: &Job) -> anyhow::Result<Starter> {
    let (world_size, mpi, nccl) = (job.world_size(), cfg!(feature = "mpi"), cfg!(feature = "nccl"));
    let on_gpus = nccl && (gpus::count() > 0 || !mpi);
    let backend = args
        .backend
        .unwrap_or(if mpi && !on_gpus { Backend::Mpi } else { Backend::Nccl });
    match backend {
        Backend::Mpi => {
            ensure!(
                mpi,
                "--backend mpi: this vtrain was built without MPI; install Open MPI or MPICH and build it with \
                 cargo build --release --features mpi"
            );
            ensure!(
                args.node_rank == 0,
                "--node-rank {}: mpirun starts the ranks on all machines; run this on the first one only",
                args.node_rank
            );
            Ok(Starter::Mpirun)
        }
        Backend::Nccl if world_size == 1 || nccl => Ok(Starter::Processes),
        Backend::Nccl => Err(anyhow!(
            "{world_size} ranks need MPI or NCCL, but this vtrain was built {}",
            match mpi {
                true => "with MPI and without NCCL: choose --backend mpi",
                false =>
                    "with neither NCCL nor MPI: install Open MPI or MPICH and build it with \
                          cargo build --release --features mpi, or for GPUs with --features cuda,cudnn,nccl",
            }
        )),
    }
}

/// Returns true if a retry may succeed, unlike after an error in the run file.
fn may_pass(death: &RankFailure) -> bool {
    let mistakes = [Exit::Usage, Exit::Data, Exit::Model];
    !mistakes.iter().any(|exit| death.how == Termination::Exit(*exit as i32))
}

fn failure(death: &RankFailure) -> Failure {
    let exits = [Exit::Usage, Exit::Data, Exit::Model, Exit::Interrupted];
    let exit = exits
        .into_iter()
        .find(|exit| death.how == Termination::Exit(*exit as i32));
    Failure {
        exit: exit.unwrap_or(Exit::Training),
        error: anyhow!("{death}, and all others were ended"),
    }
}
