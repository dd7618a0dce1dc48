//! The rank of a process, according to its launcher.

use vtrain::distributed::RankInfo;
use vtrain::distributed::rank_info::Starter;

fn place(variables: &[(&str, &str)]) -> anyhow::Result<RankInfo> {
    RankInfo::of(|name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.to_string())
    })
}

#[test]
fn every_starter_is_understood() {
    let cases: [(&[(&str, &str)], Starter); 6] = [
        (
            &[
                ("OMPI_COMM_WORLD_RANK", "3"),
                ("OMPI_COMM_WORLD_SIZE", "8"),
                ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
                // PyTorchJob's own, in a pod where mpirun was started
                ("RANK", "0"),
                ("WORLD_SIZE", "2"),
            ],
            Starter::Mpi,
        ),
        (
            &[("PMI_RANK", "3"), ("PMI_SIZE", "8"), ("MPI_LOCALRANKID", "1")],
            Starter::Mpi,
        ),
        // srun --mpi=pmix
        (
            &[
                ("PMIX_RANK", "3"),
                ("SLURM_STEP_NUM_TASKS", "8"),
                ("SLURM_PROCID", "3"),
                ("SLURM_LOCALID", "1"),
            ],
            Starter::Mpi,
        ),
        // srun --mpi=pmi2
        (
            &[("PMI_RANK", "3"), ("PMI_SIZE", "8"), ("SLURM_LOCALID", "1")],
            Starter::Mpi,
        ),
        // torchrun in a batch script
        (
            &[
                ("RANK", "3"),
                ("WORLD_SIZE", "8"),
                ("LOCAL_RANK", "1"),
                ("SLURM_PROCID", "0"),
                ("SLURM_NTASKS", "4"),
            ],
            Starter::Environment,
        ),
        (
            &[
                ("SLURM_PROCID", "3"),
                ("SLURM_NTASKS", "8"),
                ("SLURM_STEP_NUM_TASKS", "8"),
                ("SLURM_LOCALID", "1"),
            ],
            Starter::Slurm,
        ),
    ];
    for (variables, starter) in cases {
        let expected = RankInfo {
            rank: 3,
            world_size: 8,
            local_rank: 1,
            starter,
        };
        assert_eq!(place(variables).unwrap(), expected, "{variables:?}");
    }
}

#[test]
fn a_process_by_itself_is_rank_0_of_1() {
    // A batch script of Slurm's that starts one process has the job's variables.
    let batch: &[(&str, &str)] = &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0")];
    for variables in [&[][..], batch, &[("RANK", "1")], &[("RANK", ""), ("WORLD_SIZE", "")]] {
        let place = place(variables).unwrap();
        assert_eq!((place.rank, place.world_size, place.starter), (0, 1, Starter::Alone));
    }
}

#[test]
fn an_environment_that_contradicts_itself_is_an_error_that_names_the_variable() {
    let none = place(&[("RANK", "two"), ("WORLD_SIZE", "4")]).unwrap_err();
    assert!(format!("{none:#}").contains("RANK is \"two\""), "{none:#}");
    let beyond = place(&[("RANK", "4"), ("WORLD_SIZE", "4")]).unwrap_err().to_string();
    assert!(beyond.contains("RANK is 4, and WORLD_SIZE is 4"), "{beyond}");
}
