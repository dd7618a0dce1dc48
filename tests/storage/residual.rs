//! Adapters that start at what weights lose in few bits.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use vtrain::lora::adapters::Adapters;
use vtrain::lora::residual::Residual;
use vtrain::lora::selection::Selection;
use vtrain::lora::trainable::{LoraPair, Trainable};
use vtrain::lora::{self, Init, TargetModules, diffusers, file};
use vtrain::models::denoiser::Denoiser;
use vtrain::models::registry;
use vtrain::models::wan::dit::Dit;
use vtrain::nn::Load;
use vtrain::nn::load::PartQuantization;
use vtrain::nn::storage::quantize::Quantization;
use vtrain::ops::stored::StoredMatrix;
use vtrain::rng::Rng;
use vtrain::train::segments::{ActivationPolicy, FreeMemory, forward_backward};

use super::fixture;
use super::models::{answers, input, relative};

/// A matrix that another one is stored as.
#[derive(Debug)]
struct As(Tensor);

impl StoredMatrix for As {
    fn shape(&self) -> (usize, usize) {
        self.0.dims2().unwrap()
    }

    fn bytes(&self) -> usize {
        0
    }

    fn device(&self) -> &Device {
        self.0.device()
    }

    fn rows(&self, range: Range<usize>, dtype: DType) -> Result<Tensor> {
        self.0.narrow(0, range.start, range.len())?.to_dtype(dtype)
    }
}

fn draw(seed: u64, shape: (usize, usize)) -> Tensor {
    Tensor::from_vec(Rng::new(seed).randn(shape.0 * shape.1), shape, &Device::Cpu).unwrap()
}

/// Rounded to quarters.
fn quarters(dense: &Tensor) -> Tensor {
    let numbers: Vec<f32> = dense.flatten_all().unwrap().to_vec1().unwrap();
    let rounded: Vec<f32> = numbers.iter().map(|x| (x * 4.0).round_ties_even() / 4.0).collect();
    Tensor::from_vec(rounded, dense.shape(), &Device::Cpu).unwrap()
}

fn norm(x: &Tensor) -> f64 {
    let sum = x.to_dtype(DType::F64).unwrap().sqr().unwrap().sum_all().unwrap();
    sum.to_scalar::<f64>().unwrap().sqrt()
}

fn product(residual: &Residual, scale: f64) -> Tensor {
    (residual.b.matmul(&residual.a).unwrap() * scale).unwrap()
}

/// numpy's singular values give the least error of any rank:
///
/// ```python
/// w = torch.randn(rows * columns, generator=torch.Generator().manual_seed(seed)).reshape(rows, columns).double().numpy()
/// lost = w - np.round(w * 4) / 4
/// s = np.linalg.svd(lost, compute_uv=False)
/// np.linalg.norm(lost) / np.linalg.norm(w), np.sqrt((s[rank:] ** 2).sum()) / np.linalg.norm(w)
/// ```
#[test]
fn the_error_with_the_adapter_is_the_least_of_its_rank() {
    for (seed, shape, rank, before, least) in [
        (5, (96, 80), 8, 0.07332391307416719, 0.061788029541341875),
        (6, (40, 200), 16, 0.0724712717533596, 0.04637131578084265),
        (7, (200, 150), 4, 0.07260988642116445, 0.06950843042096475),
    ] {
        let dense = draw(seed, shape);
        let stored = As(quarters(&dense));
        for scale in [1.0, 0.25, 3.0] {
            let found = Residual::new(&dense, &stored, rank, scale, &mut Rng::new(1)).unwrap();
            assert_eq!(found.a.dims(), [rank, shape.1]);
            assert_eq!(found.b.dims(), [shape.0, rank]);
            assert!((found.before / before - 1.0).abs() < 1e-5, "{} {before}", found.before);
            println!("{shape:?}: {before:.4} became {:.5}, at least {least:.5}", found.after);
            assert!(found.after <= least * 1.01, "{} {least}", found.after);
            assert!(found.after >= least * (1.0 - 1e-5), "{} {least}", found.after);
            // The error that is told is the one that the layer has.
            let left = norm(&(&dense - (&stored.0 + product(&found, scale)).unwrap()).unwrap()) / norm(&dense);
            assert!((left / found.after - 1.0).abs() < 1e-5, "{left} {}", found.after);
        }
    }
}

#[test]
fn what_has_the_rank_of_the_adapter_is_found_whole_and_the_rest_of_the_adapter_can_learn() {
    let (rows, columns, rank) = (120, 90, 8);
    let dense = draw(1, (rows, columns));
    let lost = draw(2, (rows, 3)).matmul(&draw(3, (3, columns))).unwrap();
    let stored = As((&dense - &lost).unwrap());
    for scale in [1.0, 0.5] {
        let found = Residual::new(&dense, &stored, rank, scale, &mut Rng::new(1)).unwrap();
        assert!(found.before > 0.5 && found.after < 1e-5, "{found:?}");
        let off = norm(&(product(&found, scale) - &lost).unwrap()) / norm(&lost);
        assert!(off < 1e-5, "{off:e}");
    }
    // Nothing at all is lost.
    let found = Residual::new(&dense, &As(dense.clone()), rank, 1.0, &mut Rng::new(1)).unwrap();
    assert_eq!((found.before, found.after, norm(&found.b)), (0.0, 0.0, 0.0));
    let a: Vec<Vec<f32>> = found.a.to_vec2().unwrap();
    let bound = 1.0 / (columns as f32).sqrt();
    for row in &a {
        let largest = row.iter().map(|x| x.abs()).fold(0.0, f32::max);
        assert!(largest > 0.5 * bound && largest <= bound, "{largest}");
    }
    // A rank beyond the matrix' own.
    let found = Residual::new(&draw(4, (6, 90)), &As(draw(5, (6, 90))), 10, 1.0, &mut Rng::new(1)).unwrap();
    assert!(found.after < 1e-5, "{}", found.after);
    assert!(
        found
            .a
            .to_vec2::<f32>()
            .unwrap()
            .iter()
            .all(|row| row.iter().any(|x| *x != 0.0))
    );
}

#[test]
fn the_same_stream_gives_the_same_adapter() {
    let (dense, stored) = (draw(1, (200, 100)), As(quarters(&draw(1, (200, 100)))));
    let adapter = |seed: u64| {
        let found = Residual::new(&dense, &stored, 4, 1.0, &mut Rng::new(seed)).unwrap();
        found.a.to_vec2::<f32>().unwrap()
    };
    assert_eq!(adapter(3), adapter(3));
    assert_ne!(adapter(3), adapter(4), "of noise, other columns find another part");
}

fn dense() -> PathBuf {
    fixture("../wan/wan-2.1-t2v/transformer")
}

fn config(init: Option<Init>) -> lora::Config {
    lora::Config {
        rank: 8,
        alpha: 4.0,
        target_modules: TargetModules::Regex("all-linear".into()),
        init,
        ..lora::Config::default()
    }
}

fn load(form: Option<Quantization>) -> Load {
    Load::new(DType::F32, &Device::Cpu).with_quantization(PartQuantization {
        transformer: form,
        text_encoder: None,
    })
}

fn trainable(init: Option<Init>) -> Arc<Trainable> {
    Arc::new(Trainable::new(&config(init), &registry::names(), Rng::new(3), &Device::Cpu).unwrap())
}

#[test]
fn a_model_in_few_bits_with_residuals_predicts_nearer_to_the_dense_one_and_learns_from_there() {
    let answers = answers();
    let predict = |load: &Load| {
        let model = Dit::load(&dense(), load).unwrap();
        model.forward(&input(&answers)).unwrap()
    };
    let exact = predict(&load(None));
    for name in ["nf4", "int8", "q4_k"] {
        let form = Quantization::from_name(name);
        let plain = relative(&predict(&load(form)), &exact);
        let trainable = trainable(Some(Init::Residual));
        let model = Dit::load(&dense(), &load(form).with_adapters(trainable.clone())).unwrap();
        let pairs = trainable.finish().unwrap();
        let with = relative(&model.forward(&input(&answers)).unwrap(), &exact);
        let errors = trainable.residual_errors().unwrap();
        println!("{name}: {plain:.4} from the dense prediction, {with:.4} with residuals; {errors:?}");
        assert!(with < 0.75 * plain, "{name}: {with} {plain}");
        assert!(errors.layers > 10 && errors.after < 0.75 * errors.before, "{errors:?}");

        let vars: Vec<Var> = pairs
            .iter()
            .flat_map(|LoraPair { a, b, .. }| [a.clone(), b.clone()])
            .collect();
        let loss = |prediction: &Tensor| prediction.sqr()?.mean_all();
        let saved = ActivationPolicy::Inputs.saved_activations(FreeMemory::Unknown);
        let mut losses = Vec::new();
        for _ in 0..3 {
            let passed = forward_backward(&model, &input(&answers), &loss, &vars, saved.clone()).unwrap();
            losses.push(passed.loss.to_scalar::<f32>().unwrap());
            for (var, gradient) in vars.iter().zip(passed.gradients) {
                let step = (gradient.unwrap() * 0.05).unwrap();
                var.set(&(var.as_tensor() - step).unwrap()).unwrap();
            }
        }
        assert!(losses[2] < losses[0], "{losses:?}");

        // The file does the same over the same base.
        let bytes = {
            let named: Vec<_> = pairs.iter().map(LoraPair::named).collect();
            diffusers::to_bytes(&config(None), &named, None).unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pytorch_lora_weights.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let read = file::read(&path, &registry::names())
            .unwrap()
            .apply(&path, 1.0)
            .unwrap();
        let sampled = predict(&load(form).with_adapters(Arc::new(Adapters::new(vec![read], &Device::Cpu))));
        let off = relative(&sampled, &model.forward(&input(&answers)).unwrap());
        assert!(off < 1e-5, "{name}: {off:e}");
    }
}

/// What a run is told, while it loads and when headers alone are read.
fn refused(folder: &Path, form: Option<Quantization>) -> String {
    let trained = trainable(Some(Init::Residual));
    Dit::load(folder, &load(form).with_adapters(trained.clone())).unwrap();
    let told = trained.finish().unwrap_err().to_string();
    let checked = Arc::new(Selection::new(&config(Some(Init::Residual)), &registry::names()).unwrap());
    let headers = Load::headers(DType::F32, &Device::Cpu).with_quantization(load(form).quantization);
    Dit::load(folder, &headers.with_adapters(checked.clone())).unwrap();
    assert_eq!(checked.finish().unwrap_err().to_string(), told);
    told
}

#[test]
fn residuals_of_weights_whose_loss_is_unknown_or_nothing_are_refused() {
    let nf4 = Quantization::from_name("nf4");
    let stored = fixture("transformers/nf4");
    for form in [None, nf4] {
        let told = refused(&stored, form);
        assert!(
            told.contains("lora.init: residual")
                && told.contains("in few bits in the checkpoint already, first blocks.0"),
            "{told}"
        );
        assert!(told.contains("model.quantization"), "{told}");
    }
    let told = refused(&dense(), None);
    assert!(
        told.contains("lora.init: residual: no layer that is trained is stored in few bits"),
        "{told}"
    );
    assert!(told.contains("set model.quantization"), "{told}");
}

#[test]
fn residual_is_a_word_and_other_values_are_paths() {
    let read = |yaml: &str| serde_json::from_value::<lora::Config>(serde_json::json!({"init": yaml})).unwrap();
    assert_eq!(read("residual").init, Some(Init::Residual));
    assert_eq!(read("./residual").init, Some(Init::File("./residual".into())));
    let written = serde_json::to_value(read("residual")).unwrap();
    assert_eq!(written["init"], "residual");
    assert_eq!(
        serde_json::from_value::<lora::Config>(written).unwrap(),
        read("residual")
    );
}
