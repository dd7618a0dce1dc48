//! Feed-forward layers in blocks of rows.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Tensor, Var};
use vtrain::nn::adapter::{Adapt, LayerId, LoraLayer};
use vtrain::nn::dropout::{Dropout, Seed};
use vtrain::nn::feed_forward::{FeedForward, Gelu, NET};
use vtrain::nn::{Load, Weights};
use vtrain::ops::tape::{
    Output, RowWise, SavedOutputs, Tape, by_rows, no_grad, record, record_from, record_sparing, save_costly,
};
use vtrain::ops::vjp::Cotangent;
use vtrain::rng::Rng;

/// Two blocks, of which the second has the rest: 2048 and 2825 rows.
const ROWS: usize = 4873;
const WIDTH: usize = 8;
const INNER: usize = 24;

fn randn(seed: u64, shape: &[usize]) -> Tensor {
    let numbers = Rng::new(seed).randn(shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
}

/// Adapters of both layers, with dropout.
struct Adapters {
    probability: f64,
    seed: Seed,
    vars: Mutex<Vec<Var>>,
}

impl Adapters {
    fn new(probability: f64) -> Arc<Self> {
        let seed = Seed::default();
        seed.set(Some(3));
        Arc::new(Self {
            probability,
            seed,
            vars: Mutex::default(),
        })
    }
}

impl Adapt for Adapters {
    fn adapt(&self, layer: &LayerId) -> Result<Vec<LoraLayer>> {
        let mut vars = self.vars.lock().unwrap();
        let number = vars.len() as u64;
        let a = Var::from_tensor(&randn(number + 20, &[3, layer.in_features()]))?;
        let b = Var::from_tensor(&randn(number + 30, &[layer.out_features(), 3]))?;
        vars.extend([a.clone(), b.clone()]);
        Ok(vec![LoraLayer {
            a: a.into_inner(),
            b: b.into_inner(),
            scale: 0.7,
            dropout: Some(Dropout {
                probability: self.probability,
                seed: self.seed.clone(),
                layer: number,
            }),
        }])
    }
}

fn layer(dtype: DType, adapters: Option<Arc<Adapters>>) -> FeedForward {
    let load = Load::new(dtype, &Device::Cpu);
    let load = match adapters {
        Some(adapters) => load.with_adapters(adapters),
        None => load,
    };
    FeedForward::new([WIDTH, INNER, WIDTH], NET, Gelu::Tanh, Weights::random(&load)).unwrap()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let wide = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
    wide.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Bits of the gradients of x and of all variables.
fn gradients(x: &Var, vars: &[Var], (output, tape): (Tensor, Tape)) -> Vec<Vec<u32>> {
    let gradient = randn(9, output.dims()).to_dtype(output.dtype()).unwrap();
    let mut found = tape.backward(&[Cotangent { output, gradient }]).unwrap();
    let all = [x].into_iter().chain(vars);
    all.map(|var| bits(&found.remove(var).unwrap().expect("a gradient")))
        .collect()
}

#[test]
fn rows_in_blocks_give_the_bits_of_all_at_once_forwards_and_backwards() {
    for dtype in [DType::F32, DType::BF16] {
        for (adapted, dropout) in [(false, 0.0), (true, 0.0), (true, 0.3)] {
            let adapters = adapted.then(|| Adapters::new(dropout));
            let layer = layer(dtype, adapters.clone());
            let vars = adapters
                .map(|adapters| adapters.vars.lock().unwrap().clone())
                .unwrap_or_default();
            let x = randn(1, &[1, ROWS, WIDTH]).to_dtype(dtype).unwrap();
            let (x, gate) = (Var::from_tensor(&x).unwrap(), randn(2, &[1, 1, WIDTH]));
            let case = format!("{dtype:?}, adapters {adapted}, dropout {dropout}");

            let (whole, tape) = record(|| layer.forward(&x)).unwrap();
            let (sparing, sparing_tape) = record_sparing(|| layer.forward(&x)).unwrap();
            let (saved, _) = save_costly(|| layer.forward(&x)).unwrap();
            let plain = no_grad(|| layer.forward_last(&x, &gate)).unwrap();
            for y in [
                &sparing,
                &saved,
                &plain,
                &layer.forward(&x.as_tensor().detach()).unwrap(),
            ] {
                assert_eq!(y.dims(), whole.dims());
                assert!(bits(y) == bits(&whole), "{case}");
            }
            let again = record_from(SavedOutputs::default(), || layer.forward_last(&x, &gate)).unwrap();
            assert_eq!(again.0.dims(), whole.dims());

            let expected = gradients(&x, &vars, (whole, tape));
            assert!(gradients(&x, &vars, (sparing, sparing_tape)) == expected, "{case}");
            assert!(gradients(&x, &vars, again) == expected, "{case}");
        }
    }
}

#[test]
fn a_trained_gate_reads_the_output_in_the_second_run_as_well() {
    let layer = layer(DType::F32, None);
    let x = Var::from_tensor(&randn(1, &[1, 5, WIDTH])).unwrap();
    let gate = Var::from_tensor(&randn(2, &[1, 1, WIDTH])).unwrap();
    let run = |gate: &Tensor| {
        record_from(SavedOutputs::default(), || layer.forward_last(&x, gate))
            .unwrap()
            .0
    };
    let whole = layer.forward(&x.as_tensor().detach()).unwrap();
    assert!(bits(&run(&gate)) == bits(&whole));
    assert!(
        bits(&run(&gate.as_tensor().detach())) != bits(&whole),
        "otherwise it is not computed"
    );
}

#[test]
fn only_the_input_is_kept_for_the_backward_pass_unless_everything_is() {
    let layer = layer(DType::F32, Some(Adapters::new(0.0)));
    let x = Var::from_tensor(&randn(1, &[1, ROWS, WIDTH])).unwrap();
    let input = 4 * ROWS * WIDTH;
    let (_, sparing) = record_sparing(|| layer.forward(&x)).unwrap();
    let (_, whole) = record(|| layer.forward(&x)).unwrap();
    assert_eq!(sparing.bytes(), input);
    assert!(whole.bytes() >= input + 2 * 4 * ROWS * INNER, "{}", whole.bytes());
}

/// Doubles rows, and notes how many were seen at a time.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(usize, usize)>>>);

impl RowWise for Seen {
    fn width(&self) -> Result<usize> {
        Ok(1)
    }

    fn variables(&self) -> Vec<Tensor> {
        Vec::new()
    }

    fn run(&self, x: &Tensor, first: usize, _: Output) -> Result<Tensor> {
        self.0.lock().unwrap().push((first, x.dim(0)?));
        vtrain::ops::activation::silu(x)
    }
}

#[test]
fn never_more_than_two_blocks_of_rows_are_seen_at_a_time() {
    for (rows, expected) in [
        (4095, vec![]),
        (4096, vec![(0, 2048), (2048, 2048)]),
        (6200, vec![(0, 2048), (2048, 2048), (4096, 2104)]),
    ] {
        let seen = Seen::default();
        let x = Var::from_tensor(&randn(1, &[1, rows, 1])).unwrap();
        let (output, tape) = record_sparing(|| by_rows(&x.flatten_to(1)?, &seen, Output::Read)).unwrap();
        let gradient = output.ones_like().unwrap();
        if expected.is_empty() {
            assert_eq!(*seen.0.lock().unwrap(), [(0, rows)], "one block is recorded as it is");
            continue;
        }
        tape.backward(&[Cotangent { output, gradient }]).unwrap();
        assert_eq!(*seen.0.lock().unwrap(), [expected.clone(), expected].concat());
    }
}
