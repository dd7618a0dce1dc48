//! This process's rank, from the environment variables of its launcher.
//!
//! | started by | rank | world size | on this machine |
//! | --- | --- | --- | --- |
//! | Open MPI | `OMPI_COMM_WORLD_RANK` | `OMPI_COMM_WORLD_SIZE` | `OMPI_COMM_WORLD_LOCAL_RANK`, `..._LOCAL_SIZE` |
//! | MPICH, Intel MPI, `srun --mpi=pmi2` | `PMI_RANK` | `PMI_SIZE` | `MPI_LOCALRANKID`, `MPI_LOCALNRANKS` |
//! | `srun --mpi=pmix` | `PMIX_RANK` | `SLURM_STEP_NUM_TASKS` | `SLURM_LOCALID` |
//! | torchrun, Kubeflow's PyTorchJob, `vtrain launch` | `RANK` | `WORLD_SIZE` | `LOCAL_RANK`, `LOCAL_WORLD_SIZE` |
//! | `srun` | `SLURM_PROCID` | `SLURM_STEP_NUM_TASKS` | `SLURM_LOCALID` |
//!
//! The first complete row counts. MPI's own come first, because only processes started by MPI have them, while a job's
//! script and its pods may have the others, too. `SLURM_NTASKS` alone is not enough: a batch script has it.

use std::fmt;

use anyhow::{Context, ensure};

/// A process's position among those of its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankInfo {
    /// Number among all ranks, from 0.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// Number among the ranks of this machine, from 0.
    pub local_rank: usize,
    /// Program that started the ranks.
    pub starter: Starter,
}

/// Launcher of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter {
    /// None.
    Alone,
    /// A launcher that can connect the process by MPI.
    Mpi,
    /// torchrun, and others that set the same variables.
    Environment,
    /// Slurm without MPI support.
    Slurm,
}

impl fmt::Display for Starter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alone => "by itself",
            Self::Mpi => "by MPI",
            Self::Environment => "by RANK and WORLD_SIZE",
            Self::Slurm => "by SLURM_PROCID and SLURM_STEP_NUM_TASKS",
        })
    }
}

/// Variables of rank, world size and local rank.
type Names = (&'static str, &'static str, &'static str);

const KNOWN: [(Starter, Names); 5] = [
    (
        Starter::Mpi,
        (
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
        ),
    ),
    (Starter::Mpi, ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")),
    (Starter::Mpi, ("PMIX_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")),
    (Starter::Environment, ("RANK", "WORLD_SIZE", "LOCAL_RANK")),
    (
        Starter::Slurm,
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ),
];

impl RankInfo {
    /// A process without others.
    pub const ALONE: Self = Self {
        rank: 0,
        world_size: 1,
        local_rank: 0,
        starter: Starter::Alone,
    };

    /// Reads this process's environment.
    pub fn here() -> anyhow::Result<Self> {
        Self::of(|name| std::env::var(name).ok())
    }

    /// Reads an environment.
    ///
    /// # Errors
    /// Fails for variables that are not numbers, and for a rank that is not below the world size.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let number = |name: &str| {
            let text = variable(name).filter(|text| !text.is_empty());
            text.map(|text| {
                let number = text.trim().parse::<usize>();
                number.with_context(|| format!("the environment's {name} is {text:?}, which is not a number"))
            })
            .transpose()
        };
        for (starter, (rank_name, size_name, local_name)) in KNOWN {
            let (Some(rank), Some(world_size)) = (number(rank_name)?, number(size_name)?) else {
                continue;
            };
            ensure!(
                rank < world_size,
                "the environment's {rank_name} is {rank}, and {size_name} is {world_size}: ranks go from 0 to one less"
            );
            // srun with pmi2 does not set MPI's own local rank.
            let local = [local_name, "SLURM_LOCALID"];
            let local = local.into_iter().find_map(|name| number(name).transpose());
            return Ok(Self {
                rank,
                world_size,
                local_rank: local.transpose()?.unwrap_or(0),
                starter,
            });
        }
        Ok(Self::ALONE)
    }
}
