//! Run files, and files that vtrain itself writes and reads again: checkpoints, logs, the page's facts, the cache.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use anyhow::anyhow;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;
use vtrain::commands::train::build;
use vtrain::commands::{check_dataset, precompute};
use vtrain::config::RunConfig;
use vtrain::data::Bucket;
use vtrain::data::cache::{Cache, Encoded, Key, RecordSchema, TextEncoderId};
use vtrain::distributed::Single;
use vtrain::models::Family;
use vtrain::report::{self, Run};
use vtrain::rng::Rng;
use vtrain::train::resume::{self, Resume};

use super::mutate::{below, json};
use super::{Corpus, copy, files, shipped};
use crate::data::y4m;

/// The run files that ship, and those of the tests.
pub fn run_files() -> Corpus {
    let folder = TempDir::new().unwrap();
    copy(&shipped("configs"), folder.path());
    copy(&shipped("tests/fixtures/training"), &folder.path().join("tests"));
    let spoiled = files(folder.path(), |path| {
        path.extension().is_some_and(|ending| ending == "yaml")
    });
    Corpus::new(folder, spoiled, |folder, file| {
        RunConfig::load(&folder.join(file), &[]).map(drop).map_err(|problems| {
            let all = problems
                .0
                .iter()
                .all(|problem| problem.place.contains(file.to_str().unwrap()));
            assert!(!problems.0.is_empty() && all, "{problems}");
            anyhow!(problems)
        })
    })
}

/// A run of two steps on two clips, and all that it needs to be resumed.
struct Trained {
    config: RunConfig,
    family: Box<dyn Family>,
    encoded: Encoded,
}

impl Trained {
    /// Trains in a folder, below `out`.
    fn new(folder: &Path) -> Self {
        let data = folder.join("data");
        std::fs::create_dir(&data).unwrap();
        for name in ["a", "b"] {
            std::fs::write(data.join(format!("{name}.y4m")), y4m(48, 32, 9, 8)).unwrap();
            std::fs::write(data.join(format!("{name}.txt")), name).unwrap();
        }
        let text = format!(
            "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
             datasets: [{{path: data, buckets: [[9, 32, 48]]}}]\nlora: {{rank: 2}}\ntrain: {{steps: 2}}\n\
             optimizer: {{ema: 0.9}}\nlr_scheduler: {{name: constant}}\n",
            shipped("tests/fixtures/cogvideox/cogvideox-5b").display()
        );
        let file = folder.join("run.yaml");
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        let output = command.arg("--config").arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let config = RunConfig::load(&file, &[]).unwrap();
        let report = check_dataset::survey(&config.datasets, false);
        let family = precompute::open_model(&config).unwrap();
        let encoded =
            precompute::precompute(&config, &*family, &report, &[], &AtomicBool::new(false), &Single).unwrap();
        Self {
            config,
            family,
            encoded,
        }
    }

    /// Goes on from the checkpoint, up to the first step.
    fn resume(&self) -> anyhow::Result<()> {
        let (config, dir) = (&self.config, self.config.run_dir());
        let newest = Resume::From(dir.path().join(CHECKPOINT));
        let checkpoint = resume::find(&newest, &dir, &config.checkpoint, &Single)?;
        let run = build::run(
            (config, Default::default()),
            &*self.family,
            &self.encoded,
            &Device::Cpu,
            checkpoint,
            &Single,
        );
        run.map(drop).map_err(|failure| failure.error)
    }
}

const CHECKPOINT: &str = "checkpoints/step-000002";
const FILES: [&str; 3] = [
    "state.json",
    "optimizer.safetensors",
    "pytorch_lora_weights.safetensors",
];

/// Files that a run resumes from. Half of the corrupted ones have valid checksums.
pub fn checkpoints() -> Corpus {
    let folder = TempDir::new().unwrap();
    let trained = Trained::new(folder.path());
    let spoiled = FILES
        .map(|name| PathBuf::from("out").join(CHECKPOINT).join(name))
        .to_vec();
    let original: BTreeMap<PathBuf, Vec<u8>> = spoiled
        .iter()
        .map(|file| (file.clone(), std::fs::read(folder.path().join(file)).unwrap()))
        .collect();
    let mut corpus = Corpus::new(folder, spoiled, move |folder, file| {
        let resumed = trained.resume();
        // Signing wrote a second file.
        for (other, bytes) in original.iter().filter(|(other, _)| *other != file) {
            std::fs::write(folder.join(other), bytes)?;
        }
        resumed
    });
    corpus.sign = Some(sign);
    // Differing settings, and adapters that fit no layer, are reported for the checkpoint.
    corpus.or_names = |_| Some(CHECKPOINT.into());
    corpus
}

/// Makes the checksums in `state.json` those of what is there.
fn sign(folder: &Path, file: &Path, rng: &mut Rng) {
    if below(rng, 2) == 0 {
        return;
    }
    let checkpoint = folder.join(file).with_file_name("");
    let path = checkpoint.join("state.json");
    let Ok(mut state) = serde_json::from_slice::<Value>(&std::fs::read(&path).unwrap()) else {
        return;
    };
    if file.ends_with("state.json") && below(rng, 2) == 0 {
        let changed = json(&serde_json::to_vec(&state["state"]).unwrap(), rng);
        state["state"] = serde_json::from_slice(&changed).unwrap();
    }
    let mut sums: Vec<(&str, Vec<u8>)> = FILES[1..]
        .iter()
        .map(|name| (*name, std::fs::read(checkpoint.join(name)).unwrap()))
        .collect();
    sums.push(("state.json", serde_json::to_vec(&state["state"]).unwrap()));
    for (name, bytes) in sums {
        if let Some(checksums) = state.get_mut("checksums").and_then(Value::as_object_mut) {
            checksums.insert(name.into(), blake3::hash(&bytes).to_hex().to_string().into());
        }
    }
    std::fs::write(path, serde_json::to_vec(&state).unwrap()).unwrap();
}

/// Files of an earlier run that a resumed run and the page read. They are read as far as possible.
pub fn logs() -> Corpus {
    let folder = TempDir::new().unwrap();
    let trained = Trained::new(folder.path());
    let spoiled = files(folder.path(), |path| {
        let name = path.file_name().unwrap().to_string_lossy();
        ["metrics.jsonl", "config.yaml", "about.json"].contains(&&*name) || name.starts_with("events.out")
    });
    assert_eq!(spoiled.len(), 4);
    let mut corpus = Corpus::new(folder, spoiled, move |folder, _| {
        let out = folder.join("out");
        let run = Run::read(&out)?;
        report::html(&[run], &out)?;
        trained.resume()
    });
    corpus.forgiving = true;
    corpus
}

/// Records of a clip and of a caption, and the memory of what was hashed.
pub fn cache() -> Corpus {
    let folder = TempDir::new().unwrap();
    let tensor = |shape: &[usize]| Tensor::rand(-1f32, 1f32, shape, &Device::Cpu).unwrap();
    let coder = TextEncoderId {
        fingerprint: blake3::hash(b"coder"),
        dtype: DType::F32,
        quantization: None,
        tokens: 6,
    };
    let clip = RecordSchema::clip([4, 3, 4, 6], vec![("image_latents", vec![4, 1, 4, 6])]);
    let caption = RecordSchema::caption(vec![("embeds", vec![6, 8]), ("mask", vec![6])], DType::F32);
    let of = |form: &RecordSchema| form.tensors.iter().map(|(_, shape)| tensor(shape)).collect::<Vec<_>>();
    let records = [
        (Key::caption("a", None, &coder), clip),
        (Key::caption("b", None, &coder), caption),
    ];
    let cache = Cache::open(folder.path());
    for (key, form) in &records {
        cache
            .write(
                key,
                form,
                &of(form),
                &[("bucket", Bucket::from([9, 32, 48]).to_string())],
            )
            .unwrap();
    }
    cache.save();
    let spoiled = files(folder.path(), |_| true);
    assert_eq!(spoiled.len(), 3);
    Corpus::new(folder, spoiled, move |folder, _| {
        let cache = Cache::open(folder);
        cache.save();
        for (key, form) in &records {
            let path = cache.path(key);
            let held = cache.holds(key, form)?;
            let bytes = std::fs::read(&path)?;
            let read = cache.read(key, form);
            std::fs::write(&path, bytes)?; // one that is damaged was removed
            read?;
            anyhow::ensure!(held, "{} is read and not held", path.display());
        }
        Ok(())
    })
}
