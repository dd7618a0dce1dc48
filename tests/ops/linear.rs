use candle_core::{DType, Device, Tensor, Var};
use vtrain::ops::linear::{Frozen, LowRank};
use vtrain::rng::Rng;

use super::{assert_close, assert_same_on_all_threads, draw, fixtures, slopes, with_gaps};

const SCALE: f64 = 0.5;

/// The shape of x before its features; features in and out, rank, whether there is a bias.
type Case = (&'static str, &'static [usize], usize, usize, usize, bool);
const CASES: [Case; 4] = [
    ("plain", &[2, 7], 10, 13, 4, true),
    ("one_row", &[1], 17, 5, 1, true),
    ("no_bias", &[3, 5, 2], 33, 70, 8, false),
    ("wide", &[131], 96, 80, 16, true),
];

struct Inputs {
    x: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    a: Tensor,
    b: Tensor,
    /// Weights of the outputs in the differentiated sum.
    weights: Tensor,
}

impl Inputs {
    fn layer(&self) -> Frozen {
        Frozen::new(self.weight.clone(), self.bias.clone())
    }
}

/// With a matrix in bf16.
fn inputs((_, shape, features, out_features, rank, bias): Case) -> Inputs {
    let mut rng = Rng::new(6);
    let x = draw(&mut rng, [shape, &[features]].concat());
    let weight = draw(&mut rng, (out_features, features)).to_dtype(DType::BF16).unwrap();
    let bias = bias.then(|| draw(&mut rng, out_features));
    Inputs {
        x,
        weight,
        bias,
        a: draw(&mut rng, (rank, features)),
        b: draw(&mut rng, (out_features, rank)),
        weights: draw(&mut rng, [shape, &[out_features]].concat()),
    }
}

/// The output, and the gradient of x.
fn frozen(inputs: &Inputs) -> [Tensor; 2] {
    let x = Var::from_tensor(&inputs.x).unwrap();
    let y = inputs.layer().forward(&x).unwrap();
    let grads = (&y * &inputs.weights).unwrap().sum_all().unwrap().backward().unwrap();
    let dx = grads.get(&x).unwrap().clone();
    [y, dx]
}

/// The output, and the gradients of x, A and B.
fn adapted(inputs: &Inputs) -> [Tensor; 4] {
    let [x, a, b] = [&inputs.x, &inputs.a, &inputs.b].map(|x| Var::from_tensor(x).unwrap());
    let adapter = LowRank {
        a: &a,
        b: &b,
        scale: SCALE,
    };
    let y = inputs.layer().forward_with(&x, adapter).unwrap();
    let grads = (&y * &inputs.weights).unwrap().sum_all().unwrap().backward().unwrap();
    let of = |x: &Var| grads.get(x).unwrap().clone();
    [y, of(&x), of(&a), of(&b)]
}

#[test]
fn linear_layers_and_their_gradients_are_torchs() {
    let expected = fixtures("linear.safetensors");
    for case in CASES {
        let inputs = inputs(case);
        let found = frozen(&inputs).into_iter().chain(adapted(&inputs));
        for (part, found) in ["frozen", "frozen_x", "y", "x", "a", "b"].iter().zip(found) {
            let name = format!("{}.{part}", case.0);
            assert_close(&name, &found, &expected[&name], 1e-5);
        }
    }
}

#[test]
fn the_gradients_are_the_slopes_in_f64() {
    for case in [("", &[3][..], 5, 4, 2, true), ("", &[2, 1][..], 3, 7, 1, false)] {
        let inputs = inputs(case);
        let [_, frozen_dx] = frozen(&inputs);
        let [_, dx, da, db] = adapted(&inputs);
        let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
        let (x, a, b, weights) = (wide(&inputs.x), wide(&inputs.a), wide(&inputs.b), wide(&inputs.weights));
        let matrix = wide(&inputs.weight);
        let loss = |x: &Tensor, a: &Tensor, b: &Tensor| {
            let y = (x.broadcast_matmul(&matrix.t()?)?
                + (x.broadcast_matmul(&a.t()?)?.broadcast_matmul(&b.t()?)? * SCALE)?)?;
            (y * &weights)?.sum_all() // the bias has no part in the slopes
        };
        let plain = |x: &Tensor| (x.broadcast_matmul(&matrix.t()?)? * &weights)?.sum_all();
        assert_close("x of a frozen layer", &frozen_dx, &slopes(&x, plain), 1e-5);
        assert_close("x", &dx, &slopes(&x, |x| loss(x, &a, &b)), 1e-5);
        assert_close("a", &da, &slopes(&a, |a| loss(&x, a, &b)), 1e-5);
        assert_close("b", &db, &slopes(&b, |b| loss(&x, &a, b)), 1e-5);
    }
}

#[test]
fn gaps_between_the_numbers_change_nothing() {
    let mut inputs = inputs(CASES[0]);
    let expected = (frozen(&inputs), adapted(&inputs));
    inputs.weights = with_gaps(&inputs.weights);
    inputs.weight = with_gaps(&inputs.weight);
    inputs.bias = inputs.bias.as_ref().map(with_gaps);
    let (x, a, b) = (with_gaps(&inputs.x), with_gaps(&inputs.a), with_gaps(&inputs.b));
    let found = frozen(&inputs);
    assert_close("gradient of x", &found[1], &expected.0[1], 0.0);
    assert_close("frozen", &inputs.layer().forward(&x).unwrap(), &expected.0[0], 0.0);
    let adapter = LowRank {
        a: &a,
        b: &b,
        scale: SCALE,
    };
    assert_close(
        "adapted",
        &inputs.layer().forward_with(&x, adapter).unwrap(),
        &expected.1[0],
        0.0,
    );
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let inputs = inputs(("", &[301], 600, 150, 4, true));
    assert_same_on_all_threads(|| [frozen(&inputs).to_vec(), adapted(&inputs).to_vec()].concat());
}

#[test]
fn matrices_in_f32_and_in_bf16_agree() {
    // More numbers than are widened at a time.
    let mut inputs = inputs(("", &[2], 2000, 600, 2, true));
    let narrow = adapted(&inputs);
    inputs.weight = inputs.weight.to_dtype(DType::F32).unwrap();
    for (narrow, wide) in narrow.iter().zip(&adapted(&inputs)) {
        assert_close("f32", wide, narrow, 1e-6);
    }
}

#[test]
fn bf16_is_summed_up_in_f32() {
    let mut inputs = inputs(CASES[3]);
    inputs.x = inputs.x.to_dtype(DType::BF16).unwrap();
    let found = inputs.layer().forward(&inputs.x).unwrap();
    assert_eq!(found.dtype(), DType::BF16);
    inputs.x = inputs.x.to_dtype(DType::F32).unwrap();
    let expected = inputs
        .layer()
        .forward(&inputs.x)
        .unwrap()
        .to_dtype(DType::BF16)
        .unwrap();
    assert_close("y", &found, &expected, 0.0);
}

#[test]
fn gradients_reach_only_those_who_ask() {
    let inputs = inputs(CASES[0]);
    let expected = adapted(&inputs);
    let tensors = [&inputs.x, &inputs.a, &inputs.b];
    for wanted in [[true, false, false], [false, true, true], [false, false, true]] {
        let vars = tensors.map(|x| Var::from_tensor(x).unwrap());
        let part = |i: usize| if wanted[i] { vars[i].as_tensor() } else { tensors[i] };
        let adapter = LowRank {
            a: part(1),
            b: part(2),
            scale: SCALE,
        };
        let y = inputs.layer().forward_with(part(0), adapter).unwrap();
        let grads = (&y * &inputs.weights).unwrap().sum_all().unwrap().backward().unwrap();
        for i in 0..3 {
            match grads.get(part(i)) {
                Some(found) => {
                    assert!(wanted[i]);
                    assert_close("gradient", found, &expected[i + 1], 0.0);
                }
                None => assert!(!wanted[i]),
            }
        }
        assert!(grads.get(&inputs.weight).is_none());
    }
}

#[test]
fn nothing_gives_nothing() {
    let zeros = |rows: usize, cols: usize| Tensor::zeros((rows, cols), DType::F32, &Device::Cpu).unwrap();
    for (count, features, out_features, rank) in [(0, 4, 3, 2), (5, 4, 0, 2), (5, 0, 3, 2), (5, 4, 3, 0)] {
        let bias = Tensor::ones(out_features, DType::F32, &Device::Cpu).unwrap();
        let layer = Frozen::new(zeros(out_features, features), Some(bias));
        let (a, b) = (zeros(rank, features), zeros(out_features, rank));
        let adapter = LowRank {
            a: &a,
            b: &b,
            scale: SCALE,
        };
        let x = zeros(count, features);
        let expected = Tensor::ones((count, out_features), DType::F32, &Device::Cpu).unwrap();
        assert_close("frozen", &layer.forward(&x).unwrap(), &expected, 0.0);
        assert_close("adapted", &layer.forward_with(&x, adapter).unwrap(), &expected, 0.0);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let zeros = |rows: usize, cols: usize| Tensor::zeros((rows, cols), DType::F32, &Device::Cpu).unwrap();
    let mut layer = Frozen::new(zeros(3, 4), None);
    let message = layer.forward(&zeros(2, 5)).unwrap_err().to_string();
    assert!(message.contains("4 features was given [2, 5]"), "{message}");
    for (a, b) in [
        (zeros(2, 5), zeros(3, 2)),
        (zeros(2, 4), zeros(3, 1)),
        (zeros(2, 4), zeros(4, 2)),
    ] {
        let adapter = LowRank {
            a: &a,
            b: &b,
            scale: SCALE,
        };
        assert!(
            layer
                .forward_with(&zeros(2, 4), adapter)
                .unwrap_err()
                .to_string()
                .contains("adapter")
        );
    }
    layer.bias = Some(Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap());
    assert!(layer.forward(&zeros(2, 4)).unwrap_err().to_string().contains("bias"));
    assert!(layer.forward(&Tensor::new(1f32, &Device::Cpu).unwrap()).is_err());
}
