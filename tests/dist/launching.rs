//! `vtrain launch` itself, also where there is no MPI.

use vtrain::launch::lines::Stream;
use vtrain::launch::mpirun::{Dialect, death};
use vtrain::launch::{RankFailure, Termination};

use super::{Run, finish, stderr};

#[test]
fn lines_of_mpirun_carry_the_rank_that_wrote_them() {
    let line = |dialect: Dialect, text: &str| {
        let line = dialect.line(Stream::Err, text.to_string());
        (line.rank, line.text)
    };
    let own = |rank: usize, text: &str| (Some(rank), text.to_string());
    let open = Dialect::OpenMpi;
    assert_eq!(line(open, "[1,3]<stderr>:error: no"), own(3, "error: no"));
    assert_eq!(line(open, "[1,12]<stdout>:[a]<stderr>:b"), own(12, "[a]<stderr>:b"));
    assert_eq!(line(open, "[prterun-host-1@1,0]<stderr>: so"), own(0, "so"));
    assert_eq!(line(Dialect::Hydra, "[3] error: no"), own(3, "error: no"));
    for text in ["[host:123] a message of mpirun's", "", "[1,x]<stderr>:a", "----"] {
        assert_eq!(line(open, text), (None, text.to_string()));
    }
}

#[test]
fn mpirun_says_how_the_first_rank_died() {
    let cases = [
        (
            "mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9 (Killed).",
            Termination::Exit(137),
            (1, Termination::Signal(9)),
        ),
        (
            "The first process to do so was:\n\n  Process name: [[52735,1],3]\n  Exit code:    5",
            Termination::Exit(5),
            (3, Termination::Exit(5)),
        ),
        (
            "= RANK 2 PID 81 RUNNING AT vm\n=   KILLED BY SIGNAL: 11 (Segmentation fault)",
            Termination::Exit(139),
            (2, Termination::Signal(11)),
        ),
        (
            "MPI_ABORT was invoked on rank 6 in communicator MPI_COMM_WORLD\nwith errorcode 4.",
            Termination::Exit(4),
            (6, Termination::Exit(4)),
        ),
    ];
    for (said, how, (rank, expected)) in cases {
        let found = death(said.lines(), how);
        assert_eq!((found.rank, found.how), (Some(rank), expected), "{said}");
    }
    let unknown = death(std::iter::empty(), Termination::Exit(137));
    assert_eq!((unknown.rank, unknown.how), (None, Termination::Signal(9)));
    let told = RankFailure {
        rank: Some(1),
        how: Termination::Exit(5),
    };
    assert_eq!(told.to_string(), "rank 1 ended with exit code 5");
}

#[test]
fn ranks_that_nothing_connects_say_what_to_build_or_choose() {
    let run = Run::training(1, 1);
    let mut torchrun = run.vtrain(&[], &[]);
    torchrun.envs([("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")]);
    let output = finish(torchrun);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let advice = match cfg!(feature = "mpi") {
        true => "vtrain launch --backend mpi",
        false => "with --features mpi",
    };
    assert!(said.contains("this is rank 1 of 2") && said.contains(advice), "{said}");
    assert!(said.starts_with("[rank 1] error: "), "{said}");

    let output = finish(run.vtrain(&["launch", "--backend", "nccl", "--nproc-per-node", "2", "--"], &[]));
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("--backend mpi") || said.contains("--features mpi"),
        "{said}"
    );
}

#[test]
fn one_process_needs_nothing_to_be_launched() {
    let run = Run::training(2, 2);
    let log = run.path("log");
    let start = [
        "launch",
        "--backend",
        "nccl",
        "--log-dir",
        log.to_str().unwrap(),
        "--rdzv-id",
        "job",
        "--",
    ];
    let output = finish(run.vtrain(&start, &[]));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(run.metrics().len(), 2);
    let kept = std::fs::read_to_string(log.join("job/attempt-0/0/stderr.log")).unwrap();
    assert!(kept.contains("step 2/2"), "{kept}");
}

/// In its environment, as torchrun has it.
#[cfg(target_os = "linux")]
#[test]
fn a_rank_is_told_where_rank_0_is() {
    let run = Run::training(4000, 4000);
    let start = "launch --backend nccl --master-addr 10.1.2.3 --master-port 4321 --";
    let mut child = run.vtrain(&start.split(' ').collect::<Vec<_>>(), &[]).spawn().unwrap();
    run.wait_for_step(1, &mut child);
    let told = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let own = std::fs::read(entry.path().join("environ")).ok()?;
        let own: Vec<String> = own
            .split(|byte| *byte == 0)
            .map(|part| String::from_utf8_lossy(part).into())
            .collect();
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let ours = String::from_utf8_lossy(&line).contains(run.path("run.yaml").to_str().unwrap());
        (ours && own.contains(&"RANK=0".to_string())).then_some(own)
    });
    let told = told.expect("the rank runs");
    for expected in ["MASTER_ADDR=10.1.2.3", "MASTER_PORT=4321", "WORLD_SIZE=1"] {
        assert!(told.contains(&expected.to_string()), "{expected}");
    }
    super::signal(child.id() as i32, "-INT");
    assert_eq!(super::end_of(child, super::HANGS).status.code(), Some(130));
}

#[test]
fn a_process_that_fails_leaves_its_exit_code_and_its_last_words() {
    let run = Run::training(2, 2);
    let start = ["launch", "--backend", "nccl", "--max-restarts", "2", "--"];
    let output = finish(run.vtrain(&start, &["--set", "train.steps=0"]));
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let (first, last) = (
        said.find("rank 0 ended with exit code 2"),
        said.rfind("must be at least 1"),
    );
    assert!(first.is_some() && first < last && !said.contains("restart 1"), "{said}");
}

#[test]
fn what_launch_cannot_do_is_said() {
    let run = Run::training(1, 1);
    for (options, expected) in [
        (&["--nproc-per-node", "0"][..], "is not a number of processes"),
        (&["--nproc-per-node", "gpus"], "is not a number of processes"),
        (&["--nnodes", "2", "--node-rank", "2"], "machines go from 0 to 1"),
        (&["--nnodes", "0"], "--nnodes"),
    ] {
        let output = finish(run.vtrain(&[&["launch"], options, &["--"]].concat(), &[]));
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
}
