//! Shared parts of the transformers' tests: tiny checkpoints with expected outputs, adapters as variables, changed
//! configs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use vtrain::models::denoiser::{Denoiser, Input};
use vtrain::nn::adapter::Adapt;
use vtrain::nn::adapter::LayerId;
use vtrain::nn::adapter::LoraLayer;
use vtrain::train::offload::OffloadTo;
use vtrain::train::segments::{ActivationPolicy, FreeMemory, SavedActivations, forward_backward};

/// Scale of the fixtures' adapters: alpha 6, rank 3.
const SCALE: f64 = 2.0;

/// The fixtures of a family, as `scripts/fixtures/make_FAMILY.py` writes them.
pub struct Answers {
    folder: PathBuf,
    tensors: HashMap<String, Tensor>,
}

impl Answers {
    pub fn of(family: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(family);
        let tensors = candle_core::safetensors::load(folder.join("dit.safetensors"), &Device::Cpu).unwrap();
        Self { folder, tensors }
    }

    pub fn transformer(&self, checkpoint: &str) -> PathBuf {
        self.folder.join(checkpoint).join("transformer")
    }

    pub fn find(&self, key: &str) -> Option<Tensor> {
        self.tensors.get(key).cloned()
    }

    pub fn get(&self, key: &str) -> Tensor {
        self.find(key).unwrap_or_else(|| panic!("no {key}"))
    }

    /// The adapters of the training example `key`.
    pub fn adapters(&self, key: &str) -> Arc<Adapters> {
        let prefix = format!("{key}.lora.");
        let mut adapters = HashMap::new();
        for (name, a) in &self.tensors {
            if let Some(path) = name.strip_prefix(&prefix).and_then(|name| name.strip_suffix(".A")) {
                let b = self.get(&format!("{prefix}{path}.B"));
                let pair = [Var::from_tensor(a).unwrap(), Var::from_tensor(&b).unwrap()];
                adapters.insert(path.to_string(), pair);
            }
        }
        assert!(!adapters.is_empty());
        Arc::new(Adapters(adapters))
    }

    /// Compares loss and gradients of the training example `key` with torch's; they have the same bits whatever is kept.
    pub fn gradients_agree(&self, key: &str, denoiser: &dyn Denoiser, input: &Input, adapters: &Adapters) {
        let target = self.get(&format!("{key}.target"));
        let loss = |prediction: &Tensor| (prediction - &target)?.sqr()?.mean_all();
        let mut names = Vec::new();
        let mut vars = Vec::new();
        for (path, [a, b]) in &adapters.0 {
            names.extend([format!("{path}.A"), format!("{path}.B")]);
            vars.extend([a.clone(), b.clone()]);
        }
        let folder = tempfile::tempdir().unwrap();
        let policies = [
            ActivationPolicy::All,
            ActivationPolicy::Inputs,
            ActivationPolicy::InputsAndAttention,
            ActivationPolicy::Offloaded,
        ];
        let in_memory = policies.map(|policy| policy.saved_activations(FreeMemory::Unknown));
        let in_file = SavedActivations::Offloaded(OffloadTo::FileIn(folder.path().into()));
        let mut bits: Option<Vec<Vec<f32>>> = None;
        for keep in in_memory.into_iter().chain([in_file]) {
            let passed = forward_backward(denoiser, input, &loss, &vars, keep.clone()).unwrap();
            let error = relative_error(&passed.loss, &self.get(&format!("{key}.loss")));
            assert!(error <= 1e-5, "{keep:?}: loss {error:e}");
            let (mut worst, mut found) = (0f64, Vec::new());
            for (name, gradient) in names.iter().zip(passed.gradients) {
                let gradient = gradient.unwrap_or_else(|| panic!("{keep:?}: {name} has no gradient"));
                let error = relative_error(&gradient, &self.get(&format!("{key}.grad.{name}")));
                assert!(error <= 1e-4, "{keep:?}: {name} {error:e}");
                worst = worst.max(error);
                found.push(gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            }
            assert!(
                *bits.get_or_insert_with(|| found.clone()) == found,
                "{keep:?}: other bits"
            );
            println!("{key} {keep:?}: {worst:.1e} over {} gradients", names.len());
        }
    }

    /// Returns the error of loading the checkpoint with another value of a config key.
    pub fn refusal<T: std::fmt::Debug>(
        &self,
        checkpoint: &str,
        (key, value): (&str, serde_json::Value),
        load: impl Fn(&Path) -> anyhow::Result<T>,
    ) -> String {
        let folder = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(self.transformer(checkpoint).join("config.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json[key] = value;
        std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        format!("{:#}", load(folder.path()).unwrap_err())
    }
}

/// Adapters by path, whose matrices are variables.
pub struct Adapters(HashMap<String, [Var; 2]>);

impl Adapt for Adapters {
    fn adapt(&self, layer: &LayerId) -> Result<Vec<LoraLayer>> {
        let adapter = self.0.get(layer.path).map(|[a, b]| LoraLayer {
            a: a.as_tensor().clone(),
            b: b.as_tensor().clone(),
            scale: SCALE,
            dropout: None,
        });
        Ok(adapter.into_iter().collect())
    }
}

/// max |a - b| / max |b|
pub fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (a.to_dtype(DType::F64).unwrap(), b.to_dtype(DType::F64).unwrap());
    let largest = |x: Tensor| {
        let all = x.abs().unwrap().flatten_all().unwrap();
        all.max(0).unwrap().to_scalar::<f64>().unwrap()
    };
    largest((&a - &b).unwrap()) / largest(b)
}
