//! Runs on several processes. What needs MPI is run by `mpirun` where the tests were built with the feature `mpi`; elsewhere
//! such a test is ignored.

mod deaths;
mod launching;
mod meetings;
mod places;
mod precomputing;
mod trajectories;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;

const FINAL: &str = "pytorch_lora_weights.safetensors";

/// No run here takes so long: one that does hangs.
const HANGS: Duration = Duration::from_secs(600);

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// A folder with clips, a run file, and the run's output below `out`.
struct Run {
    folder: TempDir,
}

impl Run {
    /// On so many clips, `more` at the end of the run file.
    fn new(clips: usize, more: &str) -> Self {
        let run = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(run.path("data")).unwrap();
        let mut shapes: Vec<PathBuf> = fs::read_dir(root().join("datasets/shapes/videos"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        shapes.sort();
        for clip in &shapes[..clips] {
            let name = clip.file_stem().unwrap().to_str().unwrap();
            fs::copy(clip, run.path(&format!("data/{name}.mp4"))).unwrap();
            fs::write(run.path(&format!("data/{name}.txt")), name).unwrap();
        }
        let text = format!(
            "output_dir: out\nseed: 3\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
             datasets: [{{path: data, buckets: [[9, 32, 48]]}}]\nprecompute: {{dir: cache}}\n{more}",
            root().join("tests/fixtures/cogvideox/cogvideox-5b").display()
        );
        fs::write(run.path("run.yaml"), text).unwrap();
        run
    }

    /// Trains with these steps, checkpoints as often as given.
    fn training(steps: usize, every: usize) -> Self {
        Self::new(
            5,
            &format!(
                "lora: {{rank: 4, alpha: 8, dropout: 0.1}}\n\
                 train: {{steps: {steps}, batch_size: 1, caption_dropout: 0.2}}\n\
                 optimizer: {{lr: 0.001}}\nlr_scheduler: {{name: constant_with_warmup, warmup_steps: 2}}\n\
                 checkpoint: {{every: {every}, limit: 9}}\ntracking: {{tensorboard: false}}\n"
            ),
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn vtrain(&self, before: &[&str], more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        command
            .args(before)
            .arg("--config")
            .arg(self.path("run.yaml"))
            .args(more);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// On so many ranks; `options` are launch's.
    fn launch(&self, ranks: usize, options: &[&str], verb: &[&str], more: &[&str]) -> Command {
        let ranks = ranks.to_string();
        let start = ["launch", "--backend", "mpi", "--nproc-per-node", &ranks];
        self.vtrain(&[&start[..], options, &["--"], verb].concat(), more)
    }

    /// Trains to the end, on one rank without anything around it; `accumulation` micro-batches each.
    fn train(&self, ranks: usize, accumulation: usize, more: &[&str]) -> Output {
        let accumulation = format!("train.gradient_accumulation_steps={accumulation}");
        let more = [&["--set", &accumulation], more].concat();
        let output = finish(match ranks {
            1 => self.vtrain(&[], &more),
            _ => self.launch(ranks, &[], &[], &more),
        });
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        output
    }

    fn metrics(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("out/metrics.jsonl")).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn column(&self, name: &str) -> Vec<f64> {
        self.metrics().iter().map(|line| line[name].as_f64().unwrap()).collect()
    }

    fn adapter(&self) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(self.path("out").join(FINAL), &Device::Cpu).unwrap()
    }

    /// Waits until the log has so many lines.
    fn wait_for_step(&self, steps: usize, child: &mut Child) {
        let started = Instant::now();
        while self.metrics().len() < steps {
            assert!(started.elapsed() < HANGS, "the run does not come to step {steps}");
            assert_eq!(child.try_wait().unwrap(), None, "the run ended before step {steps}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process of a rank of this run.
    fn process_of(&self, rank: usize) -> Option<i32> {
        let (file, name) = (self.path("run.yaml"), format!("OMPI_COMM_WORLD_RANK={rank}"));
        let holds = |path: &Path, text: &str| {
            let bytes = fs::read(path).unwrap_or_default();
            bytes.split(|byte| *byte == 0).any(|part| part == text.as_bytes())
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter(|entry| holds(&entry.path().join("cmdline"), file.to_str().unwrap()))
            .filter(|entry| holds(&entry.path().join("environ"), &name))
            .find_map(|entry| entry.file_name().to_str()?.parse().ok())
    }

    /// Returns the number of processes of this run, including `vtrain launch` and `mpirun`.
    fn processes(&self) -> usize {
        let file = self.path("run.yaml");
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let own = processes.filter(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0)
                .any(|part| part == file.to_str().unwrap().as_bytes())
        });
        own.count()
    }
}

/// Runs a command to its end, which comes before long.
fn finish(mut command: Command) -> Output {
    end_of(command.spawn().unwrap(), HANGS)
}

/// Waits for a process, with a time limit, and returns its output.
fn end_of(mut child: Child, within: Duration) -> Output {
    let started = Instant::now();
    // Full pipes would hold it up.
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |from: &mut dyn std::io::Read| {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let (out, err) = (
        std::thread::spawn(move || read(&mut out)),
        std::thread::spawn(move || read(&mut err)),
    );
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > within {
            let _ = child.kill();
            let _ = child.wait();
            panic!(
                "it did not end within {within:?}:\n{}",
                String::from_utf8_lossy(&err.join().unwrap())
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output {
        status,
        stdout: out.join().unwrap(),
        stderr: err.join().unwrap(),
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn signal(process: i32, name: &str) {
    let done = Command::new("kill")
        .args([name, &process.to_string()])
        .status()
        .unwrap();
    assert!(done.success());
}

/// The largest difference of two trajectories, relative to the second: of their losses, and of their adapters (the norm of
/// the difference by the norm, tensor by tensor).
fn difference(ours: &Run, theirs: &Run) -> (f64, f64) {
    let (a, b) = (ours.column("loss"), theirs.column("loss"));
    assert_eq!(a.len(), b.len());
    let losses = a.iter().zip(&b).map(|(a, b)| (a / b - 1.0).abs());
    let norm = |x: &Tensor| -> f64 {
        let x = x.to_dtype(candle_core::DType::F64).unwrap();
        x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    };
    let (a, b) = (ours.adapter(), theirs.adapter());
    assert_eq!(a.len(), b.len());
    let adapters = a
        .iter()
        .map(|(name, a)| norm(&(a - &b[name]).unwrap()) / norm(&b[name]));
    (losses.fold(0.0, f64::max), adapters.fold(0.0, f64::max))
}

/// Equal to 1e-6, the bar of this whole folder.
fn assert_same(what: &str, ours: &Run, theirs: &Run) {
    let (losses, adapters) = difference(ours, theirs);
    println!("{what}: losses differ by {losses:.1e} at most, adapters by {adapters:.1e}");
    assert!(losses <= 1e-6 && adapters <= 1e-6, "{what}: {losses:e} {adapters:e}");
}
