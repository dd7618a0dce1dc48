//! The failure of one rank ends all, without waiting for it.

use std::process::Child;
use std::time::{Duration, Instant};

use super::{HANGS, Run, assert_same, end_of, finish, signal, stderr};

const STEPS: usize = 16;
const RANKS: usize = 2;

/// Time limit for the end of all ranks after one has failed: far below the time-out, also on a busy machine.
const SOON: Duration = Duration::from_secs(60);

fn start(run: &Run, options: &[&str], more: &[&str]) -> Child {
    run.launch(RANKS, options, &[], more).spawn().unwrap()
}

/// Random number from the clock.
fn below(limit: usize) -> usize {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    now.subsec_micros() as usize % limit
}

/// `VTRAIN_RANK_KILLS=50 cargo test --features mpi killing` for the whole bar.
#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs mpi: built without the feature")]
fn killing_any_rank_at_any_time_ends_all_and_a_restart_finishes_the_run() {
    let kills = std::env::var("VTRAIN_RANK_KILLS").map_or(3, |text| text.parse().unwrap());
    let straight = Run::training(STEPS, 2);
    straight.train(RANKS, 1, &[]);
    let mut slowest = Duration::ZERO;
    for kill in 0..kills {
        let (rank, step) = (below(RANKS), 1 + below(STEPS - 6));
        let restarted = kill % 3 == 0;
        let run = Run::training(STEPS, 2);
        let options: &[&str] = if restarted { &["--max-restarts", "1"] } else { &[] };
        // A restart goes on from what the run saved, also where the run was to start anew.
        let mut child = start(&run, options, if restarted { &["--resume", "never"] } else { &[] });
        // Looked up early: a look through all processes takes time, and few steps are left.
        run.wait_for_step(1, &mut child);
        let process = run.process_of(rank).expect("the rank runs");
        run.wait_for_step(step, &mut child);
        std::thread::sleep(Duration::from_millis(below(30) as u64));
        signal(process, "-KILL");
        let killed = Instant::now();
        let output = end_of(child, if restarted { HANGS } else { SOON });
        let said = stderr(&output);
        assert!(said.contains(&format!("rank {rank} was killed by signal 9")), "{said}");
        let last = said.find("its last lines:").expect("last lines are reported");
        assert!(said[last..].contains(&format!("  [rank {rank}] ")), "{said}");
        if restarted {
            assert_eq!(output.status.code(), Some(0), "{said}");
            assert!(said.contains("restart 1 of 1"), "{said}");
            assert!(step < 3 || said.contains("continuing from"), "{said}");
            assert_same(
                &format!("rank {rank} killed after step {step}, restarted"),
                &run,
                &straight,
            );
            let steps: Vec<f64> = (1..=STEPS).map(|step| step as f64).collect();
            assert_eq!(run.column("step"), steps);
        } else {
            slowest = slowest.max(killed.elapsed());
            assert_eq!(output.status.code(), Some(5), "{said}");
        }
        assert_eq!(run.processes(), 0, "somebody lives on");
    }
    println!("{kills} kills; without a restart all had ended {slowest:.1?} later at most");
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs mpi: built without the feature")]
fn a_rank_that_hangs_is_named_when_the_time_is_up() {
    let run = Run::training(400, 400);
    let mut child = start(&run, &[], &["--set", "dist.timeout=10"]);
    run.wait_for_step(2, &mut child);
    signal(run.process_of(1).unwrap(), "-STOP");
    let output = end_of(child, Duration::from_secs(120));
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(
        said.contains("rank 1 did not come to") && said.contains("within 10 s"),
        "{said}"
    );
    assert_eq!(run.processes(), 0);
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs mpi: built without the feature")]
fn ctrl_c_reaches_all_and_what_is_done_is_saved() {
    let run = Run::training(2000, 2000);
    let mut child = start(&run, &[], &[]);
    run.wait_for_step(3, &mut child);
    signal(child.id() as i32, "-INT");
    let output = end_of(child, SOON);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{said}");
    let at = run.metrics().len();
    assert!(at < 2000);
    assert!(
        run.path(&format!("out/checkpoints/step-{at:06}/state.json")).is_file(),
        "{said}"
    );
    assert_eq!(
        said.matches("continues from there").count(),
        1,
        "rank 0 alone tells: {said}"
    );
    assert_eq!(run.processes(), 0);
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs mpi: built without the feature")]
fn what_is_wrong_on_all_ranks_is_told_and_not_tried_again() {
    let run = Run::training(2, 2);
    let output = finish(run.launch(RANKS, &["--max-restarts", "3"], &[], &["--set", "model.path=nowhere"]));
    let said = stderr(&output);
    assert!(matches!(output.status.code(), Some(2..=4)), "{said}");
    assert!(said.contains("nowhere") && !said.contains("restart 1"), "{said}");
}
