//! A run whose disk or memory fails reports so, loses no good files, and can resume.
//!
//! `faults/shim.c` intercepts calls to the C library and makes single ones fail. By default some forty calls are tried,
//! one of each kind; with `VTRAIN_FAULTS=all` every one, in several ways.

mod memory;
mod mounts;
mod room;
mod sites;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::Value;
use vtrain::train::checkpoint::Loaded;

const FINAL: &str = "pytorch_lora_weights.safetensors";

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const EACCES: i32 = 13;
const EROFS: i32 = 30;

/// The exit code for a disk or a memory that fails.
const FAILED: Option<i32> = Some(5);

/// Three steps of a tiny model, with all that a run may write.
struct Run {
    folder: tempfile::TempDir,
}

/// Fault to inject. The default is none.
#[derive(Debug, Default, Clone)]
struct Fault {
    /// The call, counted from 1.
    at: usize,
    /// True if all later calls fail, too.
    stays: bool,
    /// Restricts to calls of these names, between commas.
    only: &'static str,
    errno: i32,
    /// Restricts to paths below this part of the run's output; thumbnails cannot be reached otherwise.
    below: &'static str,
    /// Bytes that the disk says are free, from call `at` on.
    free: Option<u64>,
}

/// A call that writes, as the shim saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    name: String,
    /// Below the run's folder; letters that are drawn at random are gone.
    path: String,
    failed: bool,
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn model() -> PathBuf {
    root().join("tests/fixtures/cogvideox/cogvideox-5b")
}

/// The compiled shim; None where there can be none. Rust itself links with `cc`, so there is one.
fn shim() -> Option<&'static Path> {
    static SHIM: OnceLock<Option<PathBuf>> = OnceLock::new();
    let compile = || {
        if !cfg!(all(target_os = "linux", target_env = "gnu")) {
            return None;
        }
        let made = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("faults-{}.so", std::process::id()));
        let source = root().join("tests/faults/shim.c");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-shared", "-fPIC", "-o"])
            .arg(&made)
            .arg(source)
            .arg("-ldl");
        let done = cc.output().expect("a C compiler called cc");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Some(made)
    };
    SHIM.get_or_init(compile).as_deref()
}

impl Run {
    fn new() -> Self {
        Self::with("train: {steps: 3}\ncheckpoint: {every: 1, limit: 2, comfyui: true}\n")
    }

    /// With other steps and checkpoints.
    fn with(more: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("faults").tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir_all(data.join("videos")).unwrap();
        let source = root().join("datasets/shapes");
        for name in ["prompt.txt", "videos.txt"] {
            let text = fs::read_to_string(source.join(name)).unwrap();
            let lines: Vec<&str> = text.lines().take(2).collect();
            fs::write(data.join(name), lines.join("\n") + "\n").unwrap();
            for line in lines.iter().filter(|_| name == "videos.txt") {
                fs::copy(source.join(line), data.join(line)).unwrap();
            }
        }
        let run = Self { folder };
        run.write(more);
        run
    }

    fn write(&self, more: &str) {
        let text = format!(
            "output_dir: out\nseed: 3\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
             datasets: [{{path: data, buckets: [[9, 32, 48]]}}]\nlora: {{rank: 2}}\nlr_scheduler: {{name: constant}}\n\
             validation: {{every: 2, prompts: [{{prompt: a ball, num_frames: 1, height: 32, width: 48, steps: 1}}]}}\n{more}",
            model().display()
        );
        fs::write(self.file(), text).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("run.yaml")
    }

    fn out(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join("out")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        command.arg("--config").arg(self.file());
        command
    }

    /// Runs a command of the program under a fault; what it wrote, call by call. Thumbnails, which another thread makes,
    /// are left alone, so that the calls are the same each time.
    fn under(&self, fault: &Fault, mut command: Command) -> (Output, Vec<Call>) {
        let log = self.folder.path().join("calls");
        let _ = fs::remove_file(&log);
        let set = |value: bool| if value { "1" } else { "" };
        let below = match fault.below {
            "" => self.out(),
            part => self.out().join(part),
        };
        command
            .env("LD_PRELOAD", shim().expect("the test is ignored elsewhere"))
            .env("FAULT_UNDER", below)
            .env("FAULT_BUT", if fault.below.is_empty() { "/report/clips" } else { "" })
            .env("FAULT_LOG", &log)
            .env("FAULT_ERRNO", fault.errno.to_string())
            .env("FAULT_STAYS", set(fault.stays))
            .env("FAULT_ONLY", fault.only);
        match fault.free {
            Some(free) => command
                .env("FAULT_FREE", free.to_string())
                .env("FAULT_FROM", fault.at.to_string()),
            None => command.env("FAULT_AT", fault.at.to_string()),
        };
        let output = command.output().unwrap();
        let calls = fs::read_to_string(&log).unwrap_or_default();
        (output, calls.lines().map(|line| self.call(line)).collect())
    }

    fn call(&self, line: &str) -> Call {
        let mut fields = line.splitn(4, ' ').skip(1);
        let mut next = || fields.next().unwrap().to_string();
        let (name, fate, path) = (next(), next(), next());
        let below = path.strip_prefix(self.out().to_str().unwrap()).unwrap_or(&path);
        let parts = below.split('/').map(|part| match part {
            hidden if hidden.starts_with(".vtrain-") => ".vtrain-",
            events if events.starts_with("events.out") => "events",
            part => part,
        });
        Call {
            name,
            path: parts.collect::<Vec<_>>().join("/"),
            failed: fate == "fails",
        }
    }

    /// Trains to the end, undisturbed.
    fn train(&self) -> Output {
        let output = self.command().output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        output
    }

    fn adapter(&self) -> Vec<u8> {
        fs::read(self.out().join(FINAL)).unwrap()
    }

    /// Returns the log without timings.
    fn metrics(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.out().join("metrics.jsonl")).unwrap();
        let lines = text.lines().map(|line| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            let fields = line.as_object_mut().unwrap();
            assert!(fields.remove("step_seconds").is_some() && fields.remove("peak_memory_bytes").is_some());
            line
        });
        lines.collect()
    }

    /// The steps of the checkpoints, all of which must be readable.
    fn checkpoints(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(self.out().join("checkpoints")) else {
            return Vec::new();
        };
        let mut steps = Vec::new();
        for entry in entries {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_str().unwrap().starts_with("step-") {
                steps.push(Loaded::read(&path).unwrap().snapshot.state.step);
            }
        }
        steps.sort();
        steps
    }

    /// Returns hidden and unfinished files anywhere.
    fn leftovers(&self) -> Vec<PathBuf> {
        fn look(folder: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                if name.starts_with(".vtrain-") || name.starts_with("replaced-") {
                    found.push(path);
                } else if path.is_dir() {
                    look(&path, found);
                }
            }
        }
        let mut found = Vec::new();
        look(&self.out(), &mut found);
        found
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A run has failed as it should: the documented exit code, and one error that says all of `words`.
fn assert_failed(output: &Output, words: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), FAILED, "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    for word in words {
        assert!(errors[0].contains(word), "{word}: {said}");
    }
}

/// An undisturbed run to hold the others against.
struct Straight {
    adapter: Vec<u8>,
    metrics: Vec<Value>,
    calls: Vec<Call>,
}

fn straight() -> &'static Straight {
    static STRAIGHT: OnceLock<Straight> = OnceLock::new();
    STRAIGHT.get_or_init(|| {
        let run = Run::new();
        let (output, calls) = match shim() {
            Some(_) => run.under(&Fault::default(), run.command()),
            None => (run.train(), Vec::new()),
        };
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(run.checkpoints(), [2, 3]);
        Straight {
            adapter: run.adapter(),
            metrics: run.metrics(),
            calls,
        }
    })
}

/// Resumes without faults: the run ends as if there had been none.
fn assert_recovers(run: &Run, told: &str) {
    let output = run.command().output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{told}: {said}");
    assert!(!said.contains("damaged"), "{told}: {said}");
    let straight = straight();
    assert!(run.adapter() == straight.adapter, "{told}: the adapters differ");
    assert_eq!(run.metrics(), straight.metrics, "{told}");
    // One that could not be removed goes with the next rotation.
    assert!(run.checkpoints().ends_with(&[2, 3]), "{told}");
    assert_eq!(run.leftovers(), Vec::<PathBuf>::new(), "{told}");
    let events = crate::watching::told(&run.out());
    assert_eq!(events["loss"], [1, 2, 3], "{told}");
}
