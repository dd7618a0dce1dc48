//! Training: from clips to an adapter, compared with PyTorch and PEFT.
//!
//! The numbers in `tests/fixtures/training` were made by `scripts/fixtures/make_training.py`, which runs the PyTorch
//! loop of `scripts/fixtures/train_reference.py` on what `vtrain precompute` encodes.

mod checkpoints;
mod clipping;
mod exported;
mod learning;
mod numbers;
mod page;
pub mod pushed;
mod run;
mod secrets;
mod trajectory;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::{allegro_sample, hunyuan_video_sample, mochi_sample};

pub const FINAL: &str = "pytorch_lora_weights.safetensors";

pub fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/training").join(name)
}

/// Returns a whole checkpoint: of the fixtures, or put together in `folder`, which may not be there yet, if it is not whole
/// there.
pub fn whole(checkpoint: &str, folder: &Path) -> PathBuf {
    match checkpoint.split_once('/') {
        Some(("allegro", kind)) => allegro_sample::compose(kind, folder),
        Some(("mochi", name)) => mochi_sample::compose(name, folder),
        _ => return root().join("tests/fixtures").join(checkpoint),
    }
    folder.into()
}

pub fn model() -> PathBuf {
    root().join("tests/fixtures/cogvideox/cogvideox-5b")
}

/// A folder with a run file in it, and the run's output below `out`.
pub struct Run {
    pub folder: tempfile::TempDir,
}

impl Run {
    /// With the text of a run file.
    pub fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("run.yaml"), text).unwrap();
        Self { folder }
    }

    /// A case of the fixtures, on as many clips of `datasets/shapes` as it had.
    pub fn case(name: &str, clips: usize) -> Self {
        let text = fs::read_to_string(fixture(&format!("{name}.yaml"))).unwrap();
        let run = Self::new("");
        let data = run.folder.path().join("data");
        shapes(&data, clips);
        let text = text
            .replace("FIXTURES", root().join("tests/fixtures").to_str().unwrap())
            .replace("DATA", data.to_str().unwrap());
        let text = run.with_composed(&text);
        fs::write(run.folder.path().join("run.yaml"), text).unwrap();
        run
    }

    /// Puts the checkpoint together that a run file names by `HUNYUAN/KIND`, `MOCHI/NAME` or `ALLEGRO/KIND`, if it does; returns
    /// the text with its place.
    fn with_composed(&self, text: &str) -> String {
        type Compose = fn(&str, &Path);
        let families: [(&str, Compose); 3] = [
            ("HUNYUAN/", hunyuan_video_sample::compose),
            ("MOCHI/", mochi_sample::compose),
            ("ALLEGRO/", allegro_sample::compose),
        ];
        for (family, compose) in families {
            if let Some((before, rest)) = text.split_once(family) {
                let (name, behind) = rest.split_once(',').unwrap();
                let model = self.folder.path().join("model");
                fs::create_dir(&model).unwrap();
                compose(name, &model);
                return format!("{before}{},{behind}", model.display());
            }
        }
        text.into()
    }

    pub fn file(&self) -> PathBuf {
        self.folder.path().join("run.yaml")
    }

    pub fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        command.arg("--config").arg(self.file()).args(more);
        command
    }

    /// Trains to the end.
    pub fn train(&self, more: &[&str]) -> Output {
        let output = self.command(more).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        output
    }

    pub fn metrics(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.out().join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn column(&self, name: &str) -> Vec<f64> {
        self.metrics().iter().map(|line| line[name].as_f64().unwrap()).collect()
    }

    pub fn adapter(&self) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(self.out().join(FINAL), &Device::Cpu).unwrap()
    }
}

/// The first clips of `datasets/shapes`.
pub fn shapes(folder: &Path, count: usize) {
    let source = root().join("datasets/shapes");
    for name in ["prompt.txt", "videos.txt"] {
        let text = fs::read_to_string(source.join(name)).unwrap();
        let lines: Vec<&str> = text.lines().take(count).collect();
        fs::create_dir_all(folder.join("videos")).unwrap();
        fs::write(folder.join(name), lines.join("\n") + "\n").unwrap();
        if name == "videos.txt" {
            for line in lines {
                fs::copy(source.join(line), folder.join(line)).unwrap();
            }
        }
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// |a - b| / |b|
pub fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |x: Tensor| {
        let x = x.to_dtype(DType::F64).unwrap();
        x.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
    };
    norm((a.to_dtype(DType::F64).unwrap() - b.to_dtype(DType::F64).unwrap()).unwrap()) / norm(b.clone())
}
