//! `train.activation_policy: offloaded`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Result, Tensor, Var};
use vtrain::models::denoiser::{Denoiser, Input, State, StaticContext};
use vtrain::rng::Rng;
use vtrain::train::offload::OffloadTo;
use vtrain::train::segments::{ActivationBudget, LossAndGrads, SavedActivations, forward_backward};

use crate::training::{Run, root, shapes, stderr, whole};

/// Tokens and width of the state: 64 KB.
const STATE: [usize; 3] = [1, 64, 256];

/// Blocks x = silu(x) w_i, with a text that none of them changes. `seen` is called within each.
struct Chain<'a> {
    weights: Vec<Var>,
    seen: &'a (dyn Fn() + Send + Sync),
}

impl Denoiser for Chain<'_> {
    fn embed(&self, input: &Input) -> Result<State> {
        Ok(State {
            hidden: (&input.latents * 1.0)?,
            time: input.timestep.clone(),
            modulation: None,
            context: Some(input.text.hidden.clone()),
            image: None,
            fixed: Arc::new(StaticContext {
                grid: [1, 1, STATE[1]],
                parts: vec![STATE[1]],
                rotary: None,
                text_mask: None,
            }),
        })
    }

    fn num_blocks(&self) -> usize {
        self.weights.len()
    }

    fn block(&self, index: usize, state: &State) -> Result<State> {
        (self.seen)();
        let hidden = vtrain::ops::activation::silu(&state.hidden.broadcast_mul(&self.weights[index])?)?;
        Ok(State {
            hidden,
            ..state.clone()
        })
    }

    fn head(&self, state: &State) -> Result<Tensor> {
        Ok(state.hidden.clone())
    }
}

fn pass(blocks: usize, saved: SavedActivations, seen: &(dyn Fn() + Send + Sync)) -> Result<LossAndGrads> {
    let device = &Device::Cpu;
    let weights = (0..blocks).map(|i| Var::new(1.5f32 + 0.1 * i as f32, device));
    let chain = Chain {
        weights: weights.collect::<Result<_>>()?,
        seen,
    };
    let randn = |seed| Tensor::from_vec(Rng::new(seed).randn(STATE.iter().product()), &STATE, device);
    let input = Input::new(randn(1)?, Tensor::new(&[0f32], device)?, randn(2)?);
    forward_backward(&chain, &input, &|x: &Tensor| x.sqr()?.sum_all(), &chain.weights, saved)
}

fn in_folder(folder: &Path) -> SavedActivations {
    SavedActivations::Offloaded(OffloadTo::FileIn(folder.into()))
}

fn numbers(gradients: &[Option<Tensor>]) -> Vec<f32> {
    let each = gradients
        .iter()
        .map(|gradient| gradient.as_ref().unwrap().to_scalar().unwrap());
    each.collect()
}

#[test]
fn what_a_step_keeps_in_memory_does_not_grow_with_the_number_of_blocks() {
    let folder = tempfile::tempdir().unwrap();
    let kept = |blocks, saved| pass(blocks, saved, &|| ()).unwrap().kept_bytes;
    let inputs = || SavedActivations::Within(ActivationBudget::default());
    let state: usize = 4 * STATE.iter().product::<usize>();
    assert_eq!(kept(12, inputs()) - kept(4, inputs()), 8 * state);
    assert_eq!(kept(12, in_folder(folder.path())), kept(4, in_folder(folder.path())));
    let found = pass(12, in_folder(folder.path()), &|| ()).unwrap();
    let expected = pass(12, inputs(), &|| ()).unwrap();
    assert_eq!(numbers(&found.gradients), numbers(&expected.gradients));
}

/// Files without a name that this process has open in a folder.
fn unnamed(folder: &Path) -> usize {
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let targets = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let there = targets.filter(|target| target.starts_with(folder) && target.to_string_lossy().ends_with("(deleted)"));
    there.count()
}

#[cfg(target_os = "linux")]
#[test]
fn the_file_has_no_name_while_it_is_used_so_that_even_a_kill_leaves_nothing_and_is_gone_after_the_pass() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().canonicalize().unwrap();
    let seen = Mutex::new(Vec::new());
    let look = || {
        let names = fs::read_dir(&path).unwrap().count();
        seen.lock().unwrap().push((names, unnamed(&path)));
    };
    pass(3, in_folder(&path.join("made/later")), &look).unwrap();
    assert_eq!(
        *seen.lock().unwrap(),
        vec![(0, 1); 5],
        "three blocks, and two of them again"
    );
    assert_eq!(unnamed(&path), 0);
}

#[test]
fn a_file_that_may_not_grow_is_an_error_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let transformer = folder.path().join("model/transformer");
    fs::create_dir_all(&transformer).unwrap();
    let config = root().join("tests/fixtures/cogvideox/cogvideox-5b/transformer/config.json");
    fs::copy(config, transformer.join("config.json")).unwrap();
    let run = "output_dir: out\ndevice: cpu\nmodel: {path: model, dtype: f32}\nlora: {rank: 4, alpha: 4}\n\
               train: {activation_policy: offloaded}\ndatasets: [{path: nowhere, buckets: [[9, 32, 48]]}]\n";
    fs::write(folder.path().join("run.yaml"), run).unwrap();
    let bench = |limit: &str| {
        let command = format!("ulimit -f {limit} && exec \"$0\" bench --random-weights --steps 1 --config run.yaml");
        let mut shell = Command::new("bash");
        shell
            .args(["-c", &command, env!("CARGO_BIN_EXE_vtrain")])
            .current_dir(folder.path());
        shell.output().unwrap()
    };
    let (stopped, whole) = (bench("1"), bench("unlimited"));
    let told = stderr(&stopped);
    assert_ne!(stopped.status.code(), Some(0), "{told}");
    for part in ["train.activation_policy: offloaded", "File too large", "ulimit -f"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("panicked"), "{told}");
    assert_eq!(whole.status.code(), Some(0), "{}", stderr(&whole));
}

#[test]
fn a_run_that_parks_inputs_writes_the_same_losses_and_adapters_for_every_family() {
    for (checkpoint, frames) in [
        ("cogvideox/cogvideox-5b", 9),
        ("ltx_video/ltx-0.9.0", 9),
        ("wan/wan-2.1-t2v", 9),
        ("hunyuan_video/checkpoints/t2v", 9),
        ("mochi/mochi-1", 7),
        ("allegro/allegro-t2v", 8),
    ] {
        let run = Run::new("");
        shapes(&run.folder.path().join("data"), 1);
        let model = whole(checkpoint, &run.folder.path().join("model"));
        let text = format!(
            "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\nlora: {{rank: 4, alpha: 4, dropout: 0.1}}\n\
             datasets: [{{path: data, buckets: [[{frames}, 64, 96]]}}]\nprecompute: {{dir: cache}}\ntrain: {{steps: 2}}\n",
            model.display()
        );
        fs::write(run.file(), text).unwrap();
        let trained = |policy: &str| {
            let out = run.folder.path().join(policy).display().to_string();
            let sets = [format!("output_dir={out}"), format!("train.activation_policy={policy}")];
            run.train(&["--set", &sets[0], "--set", &sets[1]]);
            let out = Path::new(&out);
            let log = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
            let losses: Vec<f64> = log
                .lines()
                .map(|line| {
                    serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"]
                        .as_f64()
                        .unwrap()
                })
                .collect();
            let adapter = candle_core::safetensors::load(out.join(crate::training::FINAL), &Device::Cpu).unwrap();
            let mut adapter: Vec<(String, Vec<f32>)> = adapter
                .into_iter()
                .map(|(name, tensor)| (name, tensor.flatten_all().unwrap().to_vec1().unwrap()))
                .collect();
            adapter.sort_by(|a, b| a.0.cmp(&b.0));
            (losses, adapter)
        };
        let (inputs, offloaded) = (trained("inputs"), trained("offloaded"));
        assert_eq!(inputs.0.len(), 2, "{checkpoint}");
        assert!(inputs == offloaded, "{checkpoint}");
    }
}
