//! References of operations: torch (`scripts/fixtures/make_ops_elementwise.py`), finite differences of their formula in
//! f64, and themselves in bf16, on other numbers of threads, and of tensors with gaps.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, Var};
use vtrain::rng::Rng;

/// An operation on some tensors.
pub type Op<'a> = &'a (dyn Fn(&[Tensor]) -> Result<Tensor> + Sync);

/// The same in f64, on what the tensors hold.
pub type Formula<'a> = &'a dyn Fn(&[Vec<f64>]) -> Vec<f64>;

pub fn randn(seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_vec(Rng::new(seed).randn(shape.iter().product()), shape, &Device::Cpu).unwrap()
}

pub fn numbers(x: &Tensor) -> Vec<f64> {
    let x = x.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
    x.to_vec1().unwrap()
}

/// The largest difference, against the largest number.
fn error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest =
        |numbers: &mut dyn Iterator<Item = f64>| numbers.fold(0f64, |a, b| if b.is_nan() { b } else { a.max(b) });
    let difference = largest(&mut found.iter().zip(expected).map(|(a, b)| (a - b).abs()));
    difference / largest(&mut expected.iter().map(|x| x.abs())).max(1e-30)
}

/// The output, and the gradients of its sum weighted with `weights`.
fn gradients(op: Op, inputs: &[Tensor], weights: &Tensor) -> (Tensor, Vec<Tensor>) {
    let vars: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let out = op(&tensors).unwrap();
    let store = (&out * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let gradients = vars.iter().map(|var| store.get(var).unwrap().clone());
    (out.detach(), gradients.collect())
}

/// The case `name` of the fixtures, whose inputs have these names.
pub fn equals_torch(name: &str, inputs: &[&str], op: Op) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ops/elementwise.safetensors");
    let answers: HashMap<String, Tensor> = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let of = |key: &str| answers[&format!("{name}.{key}")].clone();
    let tensors: Vec<Tensor> = inputs.iter().map(|key| of(key)).collect();
    let (out, gradients) = gradients(op, &tensors, &of("weights"));
    let forward = error(&numbers(&out), &numbers(&of("out")));
    assert!(forward <= 1e-5, "{name}: {forward:e}");
    for (key, gradient) in inputs.iter().zip(gradients) {
        let error = error(&numbers(&gradient), &numbers(&of(&format!("d{key}"))));
        assert!(error <= 1e-5, "{name}, gradient of {key}: {error:e}");
    }
}

/// Output and gradients against the formula and its central differences.
pub fn equals_formula(op: Op, formula: Formula, inputs: &[Tensor]) {
    const STEP: f64 = 1e-4;
    let mut at: Vec<Vec<f64>> = inputs.iter().map(numbers).collect();
    let expected = formula(&at);
    let shape = op(inputs).unwrap().dims().to_vec();
    let weights = randn(99, &shape);
    let (out, gradients) = gradients(op, inputs, &weights);
    let forward = error(&numbers(&out), &expected);
    assert!(forward <= 1e-5, "{forward:e}");
    let weights = numbers(&weights);
    for (input, gradient) in gradients.iter().enumerate() {
        let mut slopes = Vec::new();
        for i in 0..at[input].len() {
            let start = at[input][i];
            let mut sum_at = |x: f64| {
                at[input][i] = x;
                formula(&at).iter().zip(&weights).map(|(y, w)| y * w).sum::<f64>()
            };
            slopes.push((sum_at(start + STEP) - sum_at(start - STEP)) / (2.0 * STEP));
            sum_at(start);
        }
        let error = error(&numbers(gradient), &slopes);
        assert!(error <= 1e-5, "gradient of input {input}: {error:e}");
    }
}

/// The first input may have gaps, or be bf16 as the output then is; and threads do not matter, to the last bit. Gradients
/// of the others, which stay in f32, are so too.
pub fn holds_in_any_form(op: Op, inputs: &[Tensor]) {
    let weights = randn(98, op(inputs).unwrap().dims());
    let all = |op: Op, inputs: &[Tensor]| {
        let (out, gradients) = gradients(op, inputs, &weights);
        [&[out], &gradients[..]]
            .concat()
            .iter()
            .map(numbers)
            .collect::<Vec<_>>()
    };
    let expected = all(op, inputs);

    let flipped = |inputs: &[Tensor]| {
        let back = inputs[0].t().unwrap().contiguous().unwrap().t().unwrap();
        assert!(!back.is_contiguous());
        op(&[&[back], &inputs[1..]].concat())
    };
    assert_eq!(all(&flipped, inputs), expected, "with gaps");

    let narrow = |inputs: &[Tensor]| {
        let out = op(&[&[inputs[0].to_dtype(DType::BF16)?], &inputs[1..]].concat())?;
        assert_eq!(out.dtype(), DType::BF16);
        out.to_dtype(DType::F32)
    };
    for (found, expected) in all(&narrow, inputs).iter().zip(&expected) {
        let error = error(found, expected);
        assert!(error <= 1e-2, "bf16: {error:e}");
    }

    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let found = pool.install(|| all(op, inputs));
        assert_eq!(found, expected, "{threads} threads");
    }
}
