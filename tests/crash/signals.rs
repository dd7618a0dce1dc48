//! Ctrl-C once: the step is finished and saved. Twice: the run ends at once, and only that step is lost.

use std::fs;
use std::time::Duration;

use super::{Run, signal, wait_at_most, wait_for};

/// Three steps of 60 micro-batches: long enough for a second signal within one.
fn long_steps() -> Run {
    Run::new(
        "train: {steps: 3, gradient_accumulation_steps: 30}\nlora: {rank: 2, alpha: 2}\n\
         checkpoint: {every: 1, limit: 3}\n",
    )
}

#[test]
fn one_signal_saves_the_step_and_a_second_ends_at_once_without_harm() {
    let straight = long_steps();
    straight.finish();
    for name in ["-INT", "-TERM"] {
        let run = long_steps();
        let mut child = run.start();
        let first = run.out().join("checkpoints/step-000001");
        wait_for("the first checkpoint", || first.exists() && run.lines() == 1);
        std::thread::sleep(Duration::from_millis(100)); // well into the second step
        signal(&child, name);
        std::thread::sleep(Duration::from_millis(50));
        assert!(
            child.try_wait().unwrap().is_none(),
            "one signal does not break a step off"
        );
        signal(&child, name);
        wait_at_most(Duration::from_secs(60), "an end at once", || {
            child.try_wait().unwrap().is_some()
        });
        assert_eq!(child.wait().unwrap().code(), Some(130), "{}", run.said());
        assert_eq!((run.lines(), run.checkpoints()), (1, vec!["step-000001".to_string()]));

        let mut child = run.start();
        wait_for("the next step", || run.said().contains("continuing from"));
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{}", run.said());
        assert!(run.said().contains("continues from there"), "{}", run.said());
        run.finish();
        assert_eq!(run.metrics(), straight.metrics());
        let adapter = |run: &Run| fs::read(run.out().join(super::ADAPTER)).unwrap();
        assert!(adapter(&run) == adapter(&straight));
    }
}
