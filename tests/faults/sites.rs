//! Every call that writes, failing: once, or for good from there on.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Mutex;

use rayon::prelude::*;

use super::{
    Call, EACCES, EIO, ENOSPC, EROFS, FAILED, FINAL, Fault, Run, assert_failed, assert_recovers, stderr, straight,
};

/// Calls that are tried by default, of each sort of fault.
const SAMPLE: usize = 24;

/// Calls of a full disk that fail: what takes room.
const TAKES_ROOM: &str = ",write,open,mkdir,link,";

fn all() -> bool {
    std::env::var_os("VTRAIN_FAULTS").is_some_and(|value| value == "all")
}

/// The numbers of calls to try: all, or the first of each kind and place, and others in between up to `most`.
fn chosen(calls: &[Call], most: usize) -> Vec<usize> {
    if all() {
        return (1..=calls.len()).collect();
    }
    let mut seen = HashSet::new();
    // A step is like another.
    let kind = |call: &Call| (call.name.clone(), call.path.replace(|c: char| c.is_ascii_digit(), ""));
    let firsts: Vec<usize> = (0..calls.len()).filter(|&i| seen.insert(kind(&calls[i]))).collect();
    let others: Vec<usize> = (0..calls.len()).filter(|i| !firsts.contains(i)).collect();
    let more = most.saturating_sub(firsts.len());
    let spread = (0..more.min(others.len())).map(|i| others[i * others.len() / more]);
    let mut chosen: Vec<usize> = firsts.iter().copied().chain(spread).map(|i| i + 1).collect();
    if chosen.len() > most {
        chosen = (0..most).map(|i| chosen[i * chosen.len() / most]).collect();
    }
    chosen
}

/// The newest checkpoint that was given its name, by the calls.
fn saved(calls: &[Call]) -> u64 {
    let renamed = calls.iter().filter(|call| call.name == "rename" && !call.failed);
    let steps = renamed.filter_map(|call| call.path.strip_prefix("/checkpoints/step-")?.parse().ok());
    steps.max().unwrap_or(0)
}

/// Runs with a fault, and then without one. Returns whether the fault ended the first run.
fn suffer(fault: &Fault) -> bool {
    let run = Run::new();
    let (output, calls) = run.under(fault, run.command());
    let hit = calls.iter().find(|call| call.failed);
    let said = stderr(&output);
    let told = format!("{fault:?} at {hit:?}\n{said}");
    assert!(hit.is_some(), "nothing failed: {told}");
    assert!(!said.contains("panicked"), "{told}");
    let ended = output.status.code() == FAILED;
    if ended {
        let place = run.out();
        let advice = match fault.errno {
            ENOSPC => "free some space there",
            EIO => "its connection failed",
            _ => "choose a writable folder",
        };
        assert_failed(&output, &[place.to_str().unwrap(), "cannot be written", advice]);
    } else {
        assert_eq!(output.status.code(), Some(0), "{told}");
    }
    assert_eq!(run.checkpoints().last().copied().unwrap_or(0), saved(&calls), "{told}");
    assert_recovers(&run, &told);
    ended
}

/// Tries all, some at a time, and tells what failed of it at the end.
fn suffer_all(what: &str, faults: Vec<Fault>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let (ended, wrong) = (Mutex::new(0), Mutex::new(Vec::new()));
    pool.install(|| {
        faults.par_iter().for_each(|fault| {
            let suffered = std::panic::catch_unwind(|| suffer(fault));
            match suffered {
                Ok(stopped) => *ended.lock().unwrap() += usize::from(stopped),
                Err(_) => wrong.lock().unwrap().push(fault.clone()),
            }
        });
    });
    let (ended, wrong) = (ended.into_inner().unwrap(), wrong.into_inner().unwrap());
    println!(
        "{what}: {} of {} faults ended the run (exit code 5), it went on after the others; all recovered but {}",
        ended,
        faults.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{} of {}: {wrong:?}", wrong.len(), faults.len());
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_env = "gnu")),
    ignore = "needs glibc: faults are injected on Linux with glibc only"
)]
fn a_call_that_fails_once_ends_a_run_in_words_or_not_at_all_and_costs_nothing() {
    let calls = &straight().calls;
    println!("a run makes {} calls that write", calls.len());
    let fault = |at: usize, errno: i32| Fault {
        at,
        errno,
        ..Fault::default()
    };
    let at = chosen(calls, SAMPLE);
    let faults = match all() {
        true => at.iter().flat_map(|&at| [fault(at, ENOSPC), fault(at, EIO)]).collect(),
        false => at
            .iter()
            .enumerate()
            .map(|(i, &at)| fault(at, [ENOSPC, EIO][i % 2]))
            .collect(),
    };
    suffer_all("once", faults);
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_env = "gnu")),
    ignore = "needs glibc: faults are injected on Linux with glibc only"
)]
fn a_disk_that_is_full_or_broken_from_some_call_on_leaves_what_was_good() {
    let fault = |at: usize, full: bool| Fault {
        at,
        stays: true,
        only: if full { TAKES_ROOM } else { "" },
        errno: if full { ENOSPC } else { EIO },
        ..Fault::default()
    };
    let at = chosen(&straight().calls, SAMPLE / 4);
    let faults: Vec<Fault> = match all() {
        true => at.iter().flat_map(|&at| [fault(at, true), fault(at, false)]).collect(),
        false => at.iter().enumerate().map(|(i, &at)| fault(at, i % 2 == 0)).collect(),
    };
    // The last calls are none that take room.
    let last = straight()
        .calls
        .iter()
        .rposition(|call| TAKES_ROOM.contains(&call.name))
        .unwrap()
        + 1;
    let faults: Vec<_> = faults.into_iter().filter(|fault| fault.at <= last).collect();
    suffer_all("for good", faults);
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_env = "gnu")),
    ignore = "needs glibc: faults are injected on Linux with glibc only"
)]
fn where_nothing_may_be_written_a_run_ends_before_it_begins() {
    for errno in [EROFS, EACCES] {
        let run = Run::new();
        let fault = Fault {
            at: 1,
            stays: true,
            errno,
            ..Fault::default()
        };
        let (output, _) = run.under(&fault, run.command());
        assert_failed(&output, &[run.out().to_str().unwrap(), "choose a writable folder"]);
        assert_recovers(&run, "read-only");
    }
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_env = "gnu")),
    ignore = "needs glibc: faults are injected on Linux with glibc only"
)]
fn pictures_and_pages_and_videos_that_cannot_be_written_end_no_run() {
    for below in ["report", "index.html", "validation", "tensorboard", "metrics.jsonl"] {
        // The logs are opened, and then the disk is full.
        let only = if ["tensorboard", "metrics.jsonl"].contains(&below) {
            ",write,fsync,"
        } else {
            ""
        };
        let run = Run::new();
        let fault = Fault {
            at: 1,
            stays: true,
            only,
            errno: ENOSPC,
            below,
            free: None,
        };
        let (output, calls) = run.under(&fault, run.command());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{below}: {said}");
        assert!(calls.iter().any(|call| call.failed), "{below}");
        assert!(said.matches("warning: ").count() >= 1, "{below}: {said}");
        assert!(run.adapter() == straight().adapter, "{below}: the adapters differ");
        assert_eq!(run.checkpoints(), [2, 3]);
    }
}

#[test]
#[cfg_attr(
    not(all(target_os = "linux", target_env = "gnu")),
    ignore = "needs glibc: faults are injected on Linux with glibc only"
)]
fn a_file_that_is_converted_onto_a_full_disk_leaves_the_old_one() {
    let run = Run::new();
    run.train();
    let made = run.out().join("made.safetensors");
    let convert = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        command.args(["lora", "convert", "--to", "comfyui"]);
        command.arg(run.out().join(FINAL)).arg(&made);
        command
    };
    let (output, calls) = run.under(&Fault::default(), convert());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    std::fs::write(&made, b"old").unwrap();
    for at in 1..=calls.len() {
        let fault = Fault {
            at,
            stays: true,
            errno: ENOSPC,
            ..Fault::default()
        };
        let (output, _) = run.under(&fault, convert());
        assert_failed(&output, &[run.out().to_str().unwrap(), "free some space there"]);
        let renamed = calls[..at - 1].iter().any(|call| call.name == "rename");
        assert_eq!(std::fs::read(&made).unwrap() == b"old", !renamed, "call {at}");
    }
}
