//! Runs that are killed, started twice, signalled and run for long, with the real program on a tiny model.
//!
//! The figures of the long ones, with their commands, are in `docs/reliability.md`.

mod kills;
mod panics;
mod signals;
mod soak;
mod two;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use vtrain::train::checkpoint::Loaded;

use crate::disk::names;

const ADAPTER: &str = "pytorch_lora_weights.safetensors";

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// A folder with clips, a run file, and the run's output below `out`.
struct Run {
    folder: tempfile::TempDir,
}

impl Run {
    /// Four short clips, and a run file with these lines of its own.
    fn new(own: &str) -> Self {
        let run = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let data = run.path("data");
        fs::create_dir(&data).unwrap();
        for name in ["ball_rolls", "sun_rises", "snow_falls", "star_shrinks"] {
            let clip = root().join(format!("datasets/shapes/videos/{name}.mp4"));
            fs::copy(clip, data.join(format!("{name}.mp4"))).unwrap();
            fs::write(data.join(format!("{name}.txt")), name.replace('_', " ")).unwrap();
        }
        let text = format!(
            "output_dir: out\nseed: 3\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
             datasets: [{{path: data, buckets: [[9, 32, 48]]}}]\n{own}",
            root().join("tests/fixtures/cogvideox/cogvideox-5b").display(),
        );
        fs::write(run.path("run.yaml"), text).unwrap();
        run
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn out(&self) -> PathBuf {
        self.path("out")
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        command.arg(verb).arg("--config").arg(self.path("run.yaml"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Starts training. Its output goes to a file, because nothing reads a pipe meanwhile.
    fn start(&self) -> Child {
        let said = fs::File::create(self.path("said")).unwrap();
        self.command("train").stderr(said).spawn().unwrap()
    }

    fn said(&self) -> String {
        fs::read_to_string(self.path("said")).unwrap()
    }

    /// Trains to the end.
    fn finish(&self) {
        let status = self.start().wait().unwrap();
        assert_eq!(status.code(), Some(0), "{}", self.said());
    }

    fn lines(&self) -> usize {
        fs::read(self.out().join("metrics.jsonl")).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count())
    }

    /// Returns the log without timings.
    fn metrics(&self) -> String {
        let text = fs::read_to_string(self.out().join("metrics.jsonl")).unwrap();
        let without = |line: &str| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            for key in ["step_seconds", "peak_memory_bytes"] {
                assert!(line.as_object_mut().unwrap().remove(key).is_some());
            }
            line.to_string() + "\n"
        };
        text.lines().map(without).collect()
    }

    /// The steps whose checkpoints are listed. Each must be readable.
    fn checkpoints(&self) -> Vec<String> {
        let folder = self.out().join("checkpoints");
        if !folder.exists() {
            return Vec::new();
        }
        let listed = names(&folder).into_iter().map(|name| name.into_string().unwrap());
        let listed: Vec<String> = listed.filter(|name| name.starts_with("step-")).collect();
        for name in &listed {
            Loaded::read(&folder.join(name)).unwrap();
        }
        listed
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits for something to become true, minutes at most.
fn wait_for(what: &str, come: impl FnMut() -> bool) {
    wait_at_most(Duration::from_secs(600), what, come);
}

fn wait_at_most(limit: Duration, what: &str, mut come: impl FnMut() -> bool) {
    let started = Instant::now();
    while !come() {
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
}

/// A record of the cache with its header in order: its notes are written in any.
fn record(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    header.sort_all_objects();
    [header.to_string().as_bytes(), data].concat()
}

/// Every file below a folder, by its path there; hidden ones too.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                Err(_) => {} // gone meanwhile
            }
        }
    }
    found.sort();
    found
}
