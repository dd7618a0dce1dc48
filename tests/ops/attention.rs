use candle_core::{DType, Device, Tensor, Var};
use vtrain::ops::attention;
use vtrain::ops::attention::bias::Bias;
use vtrain::ops::attention::{attention_by, reference};
use vtrain::rng::Rng;

use super::{assert_close, assert_same_on_all_threads, draw, fixtures, slopes, with_gaps};

/// Samples, queries, keys, heads, features a head, as the script has them.
const CASES: [(&str, [usize; 5]); 8] = [
    ("self", [1, 37, 37, 2, 64]),
    ("narrow", [1, 5, 5, 1, 24]),
    ("cross", [1, 19, 133, 1, 80]),
    ("one_query", [1, 1, 9, 1, 256]),
    ("one_key", [2, 3, 1, 2, 128]),
    ("long", [1, 203, 261, 1, 24]),
    ("bias", [2, 33, 70, 2, 32]),
    ("padding", [2, 21, 45, 2, 48]),
];

pub struct Inputs {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    /// Weights of the outputs in the differentiated sum.
    pub weights: Tensor,
    pub mask: Option<Tensor>,
}

/// 0 for the first keys, minus infinity for the others: (B, 1, 1, L). The last sample has a third of its keys.
fn padding(samples: usize, keys: usize) -> Tensor {
    let seen = |sample: usize, key: usize| sample + 1 < samples || key < keys / 3;
    let numbers: Vec<f32> = (0..samples * keys)
        .map(|i| {
            if seen(i / keys, i % keys) {
                0.0
            } else {
                f32::NEG_INFINITY
            }
        })
        .collect();
    Tensor::from_vec(numbers, (samples, 1, 1, keys), &Device::Cpu).unwrap()
}

pub fn inputs(seed: u64, mask: &str, [samples, queries, keys, heads, width]: [usize; 5]) -> Inputs {
    let mut rng = Rng::new(seed);
    let mut tokens = |count: usize| draw(&mut rng, (samples, count, heads, width));
    let (q, k, v, weights) = (tokens(queries), tokens(keys), tokens(keys), tokens(queries));
    let mask = match mask {
        "bias" => Some(draw(&mut rng, (samples, 1, queries, keys))),
        "padding" => Some(padding(samples, keys)),
        _ => None,
    };
    Inputs { q, k, v, weights, mask }
}

/// Returns the output, and the gradients of q, k and v.
fn there_and_back(inputs: &Inputs) -> [Tensor; 4] {
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| Var::from_tensor(x).unwrap());
    let out = attention(&q, &k, &v, inputs.mask.as_ref()).unwrap();
    let grads = (&out * &inputs.weights).unwrap().sum_all().unwrap().backward().unwrap();
    let of = |x: &Var| grads.get(x).unwrap().clone();
    [out, of(&q), of(&k), of(&v)]
}

#[test]
fn attention_and_its_gradients_are_torchs() {
    let expected = fixtures("attention.safetensors");
    for (name, sizes) in CASES {
        let found = there_and_back(&inputs(5, name, sizes));
        for (part, found) in ["out", "q", "k", "v"].iter().zip(&found) {
            let name = format!("{name}.{part}");
            // What one key alone has to say to the queries is nothing, up to rounding.
            if name == "one_key.q" || name == "one_key.k" {
                let largest = found.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(largest <= 1e-5, "{name}: {largest}");
            } else {
                assert_close(&name, found, &expected[&name], 1e-5);
            }
        }
    }
}

#[test]
fn the_gradients_are_the_slopes_in_f64() {
    for (mask, sizes) in [
        ("", [1, 3, 4, 2, 5]),
        ("bias", [2, 5, 3, 1, 7]),
        ("padding", [2, 2, 6, 1, 3]),
    ] {
        let inputs = inputs(8, mask, sizes);
        let [_, dq, dk, dv] = there_and_back(&inputs);
        let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
        let (q, k, v, weights) = (wide(&inputs.q), wide(&inputs.k), wide(&inputs.v), wide(&inputs.weights));
        let mask = inputs.mask.as_ref();
        let loss = |q: &Tensor, k: &Tensor, v: &Tensor| (reference(q, k, v, mask)? * &weights)?.sum_all();
        assert_close("q", &dq, &slopes(&q, |q| loss(q, &k, &v)), 1e-5);
        assert_close("k", &dk, &slopes(&k, |k| loss(&q, k, &v)), 1e-5);
        assert_close("v", &dv, &slopes(&v, |v| loss(&q, &k, v)), 1e-5);
    }
}

#[test]
fn long_sequences_agree_with_the_whole_matrix_in_f64() {
    // More keys than one piece of the backward pass, and tiles that are not full.
    let inputs = inputs(9, "", [1, 101, 4500, 1, 40]);
    let [out, dq, dk, dv] = there_and_back(&inputs);
    let [q, k, v] =
        [&inputs.q, &inputs.k, &inputs.v].map(|x| Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap());
    let expected = reference(&q, &k, &v, None).unwrap();
    let weights = inputs.weights.to_dtype(DType::F64).unwrap();
    let grads = (&expected * weights).unwrap().sum_all().unwrap().backward().unwrap();
    assert_close("out", &out, &expected, 1e-5);
    assert_close("q", &dq, grads.get(&q).unwrap(), 1e-5);
    assert_close("k", &dk, grads.get(&k).unwrap(), 1e-5);
    assert_close("v", &dv, grads.get(&v).unwrap(), 1e-5);
}

/// Keys of one tile and one more, of three tiles, and of more than one piece of the backward pass: a mask read at
/// another tile's position would let other keys through.
#[test]
fn a_mask_is_read_at_the_place_of_each_tile_of_keys() {
    for (mask, sizes) in [
        ("bias", [1, 5, 128, 1, 24]),
        ("bias", [1, 5, 129, 1, 24]),
        ("bias", [2, 100, 300, 2, 24]),
        ("padding", [2, 3, 300, 2, 24]),
        ("bias", [1, 3, 4500, 1, 24]),
    ] {
        let inputs = inputs(18, mask, sizes);
        let found = there_and_back(&inputs);
        let [q, k, v] =
            [&inputs.q, &inputs.k, &inputs.v].map(|x| Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap());
        let expected = reference(&q, &k, &v, inputs.mask.as_ref()).unwrap();
        let weights = inputs.weights.to_dtype(DType::F64).unwrap();
        let grads = (&expected * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let of = |x: &Var| grads.get(x).unwrap();
        for (part, (found, expected)) in found.iter().zip([&expected, of(&q), of(&k), of(&v)]).enumerate() {
            assert_close(
                &format!("{mask} {sizes:?}, {}", ["out", "q", "k", "v"][part]),
                found,
                expected,
                1e-5,
            );
        }
    }
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    let mut inputs = inputs(10, "", [1, 20, 300, 1, 16]);
    inputs.q = (inputs.q * 100.0).unwrap();
    let found = attention(&inputs.q, &inputs.k, &inputs.v, None).unwrap();
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let expected = reference(&wide(&inputs.q), &wide(&inputs.k), &wide(&inputs.v), None).unwrap();
    assert_close("out", &found, &expected, 1e-4);
}

#[test]
fn gaps_between_the_numbers_change_nothing() {
    let inputs = inputs(11, "bias", [2, 13, 21, 2, 12]);
    let expected = attention(&inputs.q, &inputs.k, &inputs.v, inputs.mask.as_ref()).unwrap();
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(with_gaps);
    let mask = inputs.mask.as_ref().map(with_gaps);
    let found = attention(&q, &k, &v, mask.as_ref()).unwrap();
    assert_close("out", &found, &expected, 0.0);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let inputs = inputs(12, "", [1, 230, 4300, 2, 24]);
    assert_same_on_all_threads(|| there_and_back(&inputs).to_vec());
}

#[test]
fn a_query_that_sees_no_key_gives_zeros_and_no_gradients() {
    let mut inputs = inputs(13, "", [1, 2, 3, 1, 4]);
    let nothing = [f32::NEG_INFINITY; 3];
    let mask = Tensor::new(&[[0.0, 0.0, 0.0], nothing], &Device::Cpu).unwrap();
    inputs.mask = Some(mask.reshape((1, 1, 2, 3)).unwrap());
    let [out, dq, dk, _] = there_and_back(&inputs);
    for x in [&out, &dq] {
        let second = x.narrow(1, 1, 1).unwrap();
        assert_close("second query", &second, &second.zeros_like().unwrap(), 0.0);
    }
    assert!(super::numbers(&dk).iter().all(|x| x.is_finite()));
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let expected = reference(
        &wide(&inputs.q),
        &wide(&inputs.k),
        &wide(&inputs.v),
        inputs.mask.as_ref(),
    )
    .unwrap();
    assert_close("out", &out, &expected, 1e-6);
}

/// cuDNN's result with a bias: scores less their largest, regardless of the mask.
fn by_bias(inputs: &Inputs, bias: &Tensor) -> Tensor {
    let heads_first = |x: &Tensor| x.to_dtype(DType::F64).unwrap().transpose(1, 2).unwrap();
    let (q, k, v) = (heads_first(&inputs.q), heads_first(&inputs.k), heads_first(&inputs.v));
    let scale = (q.dim(3).unwrap() as f64).powf(-0.5);
    let scores = (q
        .contiguous()
        .unwrap()
        .matmul(&k.t().unwrap().contiguous().unwrap())
        .unwrap()
        * scale)
        .unwrap();
    let scores = scores.broadcast_add(&bias.to_dtype(DType::F64).unwrap()).unwrap();
    let exp = scores
        .broadcast_sub(&scores.max_keepdim(3).unwrap())
        .unwrap()
        .exp()
        .unwrap();
    let weights = exp.broadcast_div(&exp.sum_keepdim(3).unwrap()).unwrap();
    weights
        .matmul(&v.contiguous().unwrap())
        .unwrap()
        .transpose(1, 2)
        .unwrap()
}

#[test]
fn a_mask_made_ready_for_cudnn_gives_what_the_mask_gives() {
    const INF: f32 = f32::INFINITY;
    let rows = [
        [0.0, -INF, 0.5, -1.0],
        [-INF, -INF, -INF, -INF],
        [-INF, f32::MIN, -INF, f32::MIN], // the least number is a key beside minus infinity
        [f32::MIN, f32::MIN, f32::MIN, f32::MIN],
        [-INF, -INF, 0.25, -INF],
        [f32::MIN, -10_000.0, -INF, -INF],
    ];
    let rows = Tensor::new(&rows, &Device::Cpu).unwrap();
    for (mask, seeing) in [
        (rows.reshape((1, 1, 6, 4)).unwrap(), vec![1.0, 0.0, 1.0, 1.0, 1.0, 1.0]),
        (
            rows.narrow(0, 0, 2).unwrap().reshape((2, 1, 1, 4)).unwrap(),
            vec![1.0, 0.0],
        ),
        (
            rows.narrow(0, 1, 2).unwrap().reshape((1, 2, 1, 4)).unwrap(),
            vec![0.0, 1.0],
        ),
    ] {
        let mut inputs = inputs(17, "", [2, 6, 4, 2, 8]);
        let bias = Bias::new(&mask, 6).unwrap();
        assert_eq!(bias.added.dtype(), DType::BF16);
        assert_eq!(bias.added.dim(2).unwrap(), 6);
        assert_eq!(bias.seeing.dims(), &mask.dims()[..3]);
        assert_eq!(bias.seeing.flatten_all().unwrap().to_vec1::<f32>().unwrap(), seeing);
        let seeing = bias
            .seeing
            .transpose(1, 2)
            .unwrap()
            .unsqueeze(3)
            .unwrap()
            .to_dtype(DType::F64)
            .unwrap();
        let found = by_bias(&inputs, &bias.added).broadcast_mul(&seeing).unwrap();
        inputs.mask = Some(mask);
        let [out, ..] = there_and_back(&inputs);
        assert_close("out", &found, &out, 1e-5); // these numbers are the same in bf16
    }
}

#[test]
fn the_most_negative_mask_is_not_minus_infinity() {
    // As in torch: scores vanish next to it, so that all keys are equal.
    let inputs = inputs(14, "", [1, 2, 3, 1, 4]);
    let mask = Tensor::full(f32::MIN, (1, 1, 1, 3), &Device::Cpu).unwrap();
    let found = attention(&inputs.q, &inputs.k, &inputs.v, Some(&mask)).unwrap();
    let mean = inputs.v.mean_keepdim(1).unwrap().broadcast_as((1, 2, 1, 4)).unwrap();
    assert_close("out", &found, &mean, 1e-6);
}

#[test]
fn what_is_no_number_is_not_hidden() {
    let inputs = inputs(15, "", [1, 3, 5, 1, 8]);
    let q = (&inputs.q * f64::NAN).unwrap();
    let out = attention(&q, &inputs.k, &inputs.v, None).unwrap();
    assert!(super::numbers(&out).iter().all(|x| x.is_nan()));
}

#[test]
fn without_instructions_for_bf16_it_is_computed_in_f32() {
    let inputs = inputs(16, "", [1, 30, 200, 2, 64]);
    let narrow = |x: &Tensor| x.to_dtype(DType::BF16).unwrap();
    let (q, k, v) = (narrow(&inputs.q), narrow(&inputs.k), narrow(&inputs.v));
    let found = attention_by(None, &q, &k, &v, None).unwrap();
    assert_eq!(found.dtype(), DType::BF16);
    let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
    let expected = attention(&wide(&q), &wide(&k), &wide(&v), None).unwrap();
    assert_close("out", &found, &narrow(&expected), 0.0);
}

#[test]
fn nothing_gives_nothing() {
    for [samples, queries, keys, heads, width] in [[1, 0, 3, 1, 4], [0, 2, 2, 1, 4], [1, 2, 3, 0, 4], [1, 2, 3, 2, 0]] {
        let zeros = |count: usize| Tensor::zeros((samples, count, heads, width), DType::F32, &Device::Cpu).unwrap();
        let out = attention(&zeros(queries), &zeros(keys), &zeros(keys), None).unwrap();
        assert_eq!(out.dims(), [samples, queries, heads, width]);
    }
    let tokens = |count: usize| Tensor::ones((1, count, 1, 4), DType::F32, &Device::Cpu).unwrap();
    let out = attention(&tokens(2), &tokens(0), &tokens(0), None).unwrap();
    assert!(super::numbers(&out).iter().all(|x| *x == 0.0));
}

#[test]
fn gradients_reach_only_those_who_ask() {
    let inputs = inputs(17, "", [1, 6, 7, 2, 8]);
    let [_, dq, dk, dv] = there_and_back(&inputs);
    let asks = |wanted: [bool; 3]| {
        let tensors = [&inputs.q, &inputs.k, &inputs.v];
        let vars = tensors.map(|x| Var::from_tensor(x).unwrap());
        let part = |i: usize| if wanted[i] { vars[i].as_tensor() } else { tensors[i] };
        let out = attention(part(0), part(1), part(2), None).unwrap();
        let grads = (&out * &inputs.weights).unwrap().sum_all().unwrap().backward().unwrap();
        for (i, expected) in [&dq, &dk, &dv].into_iter().enumerate() {
            match grads.get(&vars[i]) {
                Some(found) if wanted[i] => assert_close("gradient", found, expected, 0.0),
                found => assert_eq!(found.is_some(), wanted[i]),
            }
            assert!(wanted[i] || grads.get(tensors[i]).is_none());
        }
    };
    for wanted in [
        [true, false, false],
        [false, true, false],
        [false, false, true],
        [true, false, true],
    ] {
        asks(wanted);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let tokens = |count: usize, width: usize| Tensor::zeros((1, count, 2, width), DType::F32, &Device::Cpu).unwrap();
    let (q, k) = (tokens(3, 8), tokens(5, 8));
    let message = |k: &Tensor, v: &Tensor, mask: Option<&Tensor>| attention(&q, k, v, mask).unwrap_err().to_string();
    assert!(message(&k, &tokens(4, 8), None).contains("values are [1, 4, 2, 8] but queries [1, 3, 2, 8]"));
    assert!(message(&tokens(5, 4), &k, None).contains("keys are"));
    assert!(message(&k.to_dtype(DType::BF16).unwrap(), &k, None).contains("BF16 but queries are F32"));
    let mask = Tensor::zeros((1, 1, 2, 5), DType::F32, &Device::Cpu).unwrap();
    assert!(message(&k, &k, Some(&mask)).contains("a mask [1, 1, 2, 5] for scores [1, 2, 3, 5]"));
    let mask = Tensor::zeros((1, 1, 3, 1), DType::F32, &Device::Cpu).unwrap();
    assert!(message(&k, &k, Some(&mask)).contains("a mask"));
    let half = |x: &Tensor| x.to_dtype(DType::F16).unwrap();
    assert!(attention(&half(&q), &half(&k), &half(&k), None).is_err());
}
