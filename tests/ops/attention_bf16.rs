use candle_core::{DType, Device, Tensor, Var};
use vtrain::ops::attention::{attention_by, reference};
use vtrain::ops::bf16::Isa;

use super::attention::{Inputs, inputs};
use super::{assert_close, assert_same_on_all_threads, numbers};

/// Distances of torch's output, and of its gradients of q, k and v, from those in f64, by mask and features a head.
///
/// ```python
/// import torch
/// from torch.nn.functional import scaled_dot_product_attention
/// samples, queries, keys, heads = 2, 70, 101, 2
/// for mask in ("", "bias", "padding"):
///     for width in (64, 96, 128, 80):
///         torch.manual_seed(5)
///         tokens = lambda count: torch.randn(samples, count, heads, width).bfloat16()
///         q, k, v, weights = tokens(queries), tokens(keys), tokens(keys), tokens(queries)
///         m = {"": None, "bias": torch.randn(samples, 1, queries, keys), "padding": torch.zeros(samples, 1, 1, keys)}[mask]
///         if mask == "padding":
///             m[-1, ..., keys // 3 :] = -torch.inf
///         def there_and_back(dtype):
///             x = [y.to(dtype).transpose(1, 2).requires_grad_() for y in (q, k, v)]
///             out = scaled_dot_product_attention(*x, attn_mask=None if m is None else m.to(dtype))
///             return out, *torch.autograd.grad(out, x, weights.to(dtype).transpose(1, 2))
///         pairs = zip(there_and_back(torch.bfloat16), there_and_back(torch.float64))
///         print(mask, width, [f"{((a.double() - b).norm() / b.norm()).item():.2e}" for a, b in pairs])
/// ```
const TORCH: [(&str, usize, [f64; 4]); 12] = [
    ("", 64, [2.16e-3, 2.38e-3, 3.08e-3, 3.08e-3]),
    ("", 96, [2.17e-3, 2.41e-3, 3.06e-3, 3.08e-3]),
    ("", 128, [2.16e-3, 2.41e-3, 3.10e-3, 3.08e-3]),
    ("", 80, [2.15e-3, 2.40e-3, 3.05e-3, 3.01e-3]),
    ("bias", 64, [3.31e-3, 3.50e-3, 3.95e-3, 4.21e-3]),
    ("bias", 96, [3.16e-3, 3.10e-3, 3.64e-3, 3.86e-3]),
    ("bias", 128, [3.39e-3, 3.19e-3, 3.72e-3, 4.13e-3]),
    ("bias", 80, [3.30e-3, 3.42e-3, 3.86e-3, 4.06e-3]),
    ("padding", 64, [2.04e-3, 2.53e-3, 3.15e-3, 3.14e-3]),
    ("padding", 96, [2.09e-3, 2.44e-3, 3.07e-3, 3.08e-3]),
    ("padding", 128, [2.06e-3, 2.36e-3, 3.11e-3, 3.05e-3]),
    ("padding", 80, [2.08e-3, 2.52e-3, 3.14e-3, 3.02e-3]),
];

/// The tiles where the machine has them: their bits are those of the emulation.
fn tiles() -> Isa {
    Isa::available()[0]
}

fn narrow(mut inputs: Inputs) -> Inputs {
    for x in [&mut inputs.q, &mut inputs.k, &mut inputs.v, &mut inputs.weights] {
        *x = x.to_dtype(DType::BF16).unwrap();
    }
    inputs
}

/// Returns the output, and the gradients of q, k and v.
fn there_and_back(isa: Isa, inputs: &Inputs) -> [Tensor; 4] {
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| Var::from_tensor(x).unwrap());
    let out = attention_by(Some(isa), &q, &k, &v, inputs.mask.as_ref()).unwrap();
    let grads = (&out * &inputs.weights).unwrap().sum_all().unwrap().backward().unwrap();
    let of = |x: &Var| grads.get(x).unwrap().clone();
    [out, of(&q), of(&k), of(&v)]
}

/// The same in f64, from the same inputs.
fn expected(inputs: &Inputs) -> [Tensor; 4] {
    let wide = |x: &Tensor| x.to_dtype(DType::F64).unwrap();
    let [q, k, v] = [&inputs.q, &inputs.k, &inputs.v].map(|x| Var::from_tensor(&wide(x)).unwrap());
    let out = reference(&q, &k, &v, inputs.mask.as_ref()).unwrap();
    let grads = (&out * wide(&inputs.weights))
        .unwrap()
        .sum_all()
        .unwrap()
        .backward()
        .unwrap();
    let of = |x: &Var| grads.get(x).unwrap().clone();
    [out, of(&q), of(&k), of(&v)]
}

/// The length of the difference, in parts of the length of what is expected.
fn error(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (numbers(found), numbers(expected));
    let length = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    length(&mut found.iter().zip(&expected).map(|(a, b)| a - b)) / length(&mut expected.iter().copied())
}

fn assert_same_bits(what: &str, found: &[Tensor; 4], expected: &[Tensor; 4]) {
    for (part, (found, expected)) in ["out", "q", "k", "v"].iter().zip(found.iter().zip(expected)) {
        let bits = |x: &Tensor| numbers(x).into_iter().map(f64::to_bits).collect::<Vec<_>>();
        assert!(bits(found) == bits(expected), "{what}: {part} has other bits");
    }
}

/// The output and the gradients of queries carry the same roundings as torch's: up to a hundredth more is chance. The others are
/// a fifth better.
#[test]
fn errors_are_at_most_those_of_torch_in_bf16() {
    for (mask, width, torch) in TORCH {
        let inputs = narrow(inputs(5, mask, [2, 70, 101, 2, width]));
        let expected = expected(&inputs);
        for isa in Isa::available() {
            let found = there_and_back(isa, &inputs);
            for (i, part) in ["out", "q", "k", "v"].into_iter().enumerate() {
                assert_eq!(found[i].dtype(), DType::BF16);
                let error = error(&found[i], &expected[i]);
                let bound = torch[i] * [1.01, 1.01, 0.95, 0.95][i];
                assert!(
                    error <= bound,
                    "{isa:?}, mask {mask:?}, {width} features: {part} is off by {error:.2e}, torch by {:.2e}",
                    torch[i]
                );
            }
        }
    }
}

/// Where the machine has no tiles, the other tests hold the emulation to f64.
#[test]
fn tiles_give_the_bits_of_their_emulation() {
    for (mask, sizes) in [
        ("", [1, 33, 65, 2, 64]),
        ("bias", [2, 70, 31, 1, 96]),
        ("padding", [2, 32, 100, 1, 40]),
        ("", [1, 9, 300, 1, 128]),
    ] {
        let inputs = narrow(inputs(6, mask, sizes));
        let found = there_and_back(tiles(), &inputs);
        assert_same_bits(mask, &found, &there_and_back(Isa::Emulated, &inputs));
    }
}

/// Keys of as many blocks as are processed at a time and one more, forwards and backwards; queries, too; keys of more than
/// one piece.
#[test]
fn a_mask_is_read_at_the_place_of_each_block() {
    for (mask, sizes) in [
        ("bias", [1, 5, 128, 1, 24]),
        ("bias", [2, 129, 129, 2, 24]),
        ("bias", [1, 5, 256, 1, 24]),
        ("bias", [1, 5, 257, 1, 24]),
        ("padding", [2, 130, 300, 2, 24]),
        ("bias", [1, 3, 2100, 1, 24]),
    ] {
        let inputs = narrow(inputs(18, mask, sizes));
        let found = there_and_back(tiles(), &inputs);
        for (part, (found, expected)) in found.iter().zip(&expected(&inputs)).enumerate() {
            let error = error(found, expected);
            let part = ["out", "q", "k", "v"][part];
            assert!(error < 5e-3, "{mask} {sizes:?}: {part} is off by {error:.1e}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    // More queries than a thread takes at least, and keys of more than one piece.
    for sizes in [[1, 300, 40, 2, 24], [1, 33, 2100, 1, 24]] {
        let inputs = narrow(inputs(12, "", sizes));
        let wide = |x: Tensor| x.to_dtype(DType::F32).unwrap();
        assert_same_on_all_threads(|| there_and_back(tiles(), &inputs).map(wide).to_vec());
    }
}

#[test]
fn a_query_that_sees_no_key_gives_zeros_and_no_gradients() {
    let mut inputs = narrow(inputs(13, "", [1, 2, 40, 1, 64]));
    let mask = Tensor::new(&[[0f32; 40], [f32::NEG_INFINITY; 40]], &Device::Cpu).unwrap();
    inputs.mask = Some(mask.reshape((1, 1, 2, 40)).unwrap());
    for isa in Isa::available() {
        let found = there_and_back(isa, &inputs);
        for x in &found[..2] {
            let second = x.narrow(1, 1, 1).unwrap();
            assert_close("second query", &second, &second.zeros_like().unwrap(), 0.0);
        }
        for (part, (found, expected)) in found.iter().zip(&expected(&inputs)).enumerate() {
            assert!(error(found, expected) < 5e-3, "{isa:?}: {part}");
        }
    }
}

#[test]
fn the_most_negative_mask_is_not_minus_infinity_and_large_scores_do_not_overflow() {
    let mut equal = narrow(inputs(14, "", [1, 2, 3, 1, 4]));
    equal.mask = Some(Tensor::full(f32::MIN, (1, 1, 1, 3), &Device::Cpu).unwrap());
    let mut large = narrow(inputs(10, "", [1, 20, 300, 1, 16]));
    large.q = (large.q * 100.0).unwrap();
    for isa in Isa::available() {
        let [out, ..] = there_and_back(isa, &equal);
        let mean = equal.v.to_dtype(DType::F32).unwrap().mean_keepdim(1).unwrap();
        assert!(error(&out, &mean.broadcast_as((1, 2, 1, 4)).unwrap()) < 4e-3, "{isa:?}");
        let [out, ..] = there_and_back(isa, &large);
        let [expected, ..] = expected(&large);
        assert!(error(&out, &expected) < 4e-3, "{isa:?}");
    }
}

#[test]
fn what_is_no_number_is_not_hidden() {
    let inputs = narrow(inputs(15, "", [1, 3, 5, 1, 8]));
    let q = (&inputs.q * f64::NAN).unwrap();
    for isa in Isa::available() {
        let out = attention_by(Some(isa), &q, &inputs.k, &inputs.v, None).unwrap();
        assert!(numbers(&out).iter().all(|x| x.is_nan()), "{isa:?}");
    }
}

#[test]
fn gradients_reach_only_those_who_ask() {
    let inputs = narrow(inputs(17, "", [1, 40, 37, 2, 8]));
    let [_, dq, dk, dv] = there_and_back(tiles(), &inputs);
    let tensors = [&inputs.q, &inputs.k, &inputs.v];
    for wanted in [
        [true, false, false],
        [false, true, false],
        [false, false, true],
        [true, false, true],
    ] {
        let vars = tensors.map(|x| Var::from_tensor(x).unwrap());
        let part = |i: usize| if wanted[i] { vars[i].as_tensor() } else { tensors[i] };
        let out = attention_by(Some(tiles()), part(0), part(1), part(2), None).unwrap();
        let grads = (&out * &inputs.weights).unwrap().sum_all().unwrap().backward().unwrap();
        for (i, expected) in [&dq, &dk, &dv].into_iter().enumerate() {
            match grads.get(&vars[i]) {
                Some(found) if wanted[i] => assert_close("gradient", found, expected, 0.0),
                found => assert_eq!(found.is_some(), wanted[i]),
            }
        }
    }
}
