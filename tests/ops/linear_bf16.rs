use candle_core::{DType, Tensor, Var};
use vtrain::ops::bf16::Isa;
use vtrain::ops::dropout::Mask;
use vtrain::ops::linear::{Frozen, LowRank};
use vtrain::rng::Rng;

use super::{assert_close, assert_same_on_all_threads, draw, numbers};

const SCALE: f64 = 0.5;

/// A layer with an adapter whose input, matrix and bias are numbers of bf16.
struct Inputs {
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    a: Tensor,
    b: Tensor,
    /// Gradient of the output.
    gradient: Tensor,
}

/// What a layer gives: its output, and the gradients of x, A and B.
type Given = [Tensor; 4];

impl Inputs {
    /// As the script below draws them.
    fn new([rows, features, out_features, rank]: [usize; 4]) -> Self {
        let mut rng = Rng::new(7);
        let mut draw = |shape: &[usize]| draw(&mut rng, shape);
        let rounded = |x: Tensor| x.to_dtype(DType::BF16).unwrap();
        let x = rounded(draw(&[rows, features]));
        let weight = rounded(draw(&[out_features, features]));
        let bias = rounded(draw(&[out_features]));
        Self {
            x,
            weight,
            bias,
            a: draw(&[rank, features]),
            b: draw(&[out_features, rank]),
            gradient: rounded(draw(&[rows, out_features])),
        }
    }

    /// By these instructions, in f32 without; x in this type.
    fn run(&self, isa: Option<Isa>, dtype: DType, dropped: Option<Mask>) -> Given {
        let var = |x: &Tensor| Var::from_tensor(x).unwrap();
        let (x, a, b) = (var(&self.x.to_dtype(dtype).unwrap()), var(&self.a), var(&self.b));
        let layer = Frozen::new(self.weight.clone(), Some(self.bias.clone())).multiplying_by(isa);
        let adapter = LowRank {
            a: &a,
            b: &b,
            scale: SCALE,
        };
        let y = layer.forward_dropping(&x, adapter, dropped).unwrap();
        let due = (&y * self.gradient.to_dtype(dtype).unwrap()).unwrap();
        let grads = due.sum_all().unwrap().backward().unwrap();
        let of = |x: &Var| grads.get(x).unwrap().clone();
        [y.clone(), of(&x), of(&a), of(&b)].map(|x| x.to_dtype(DType::F32).unwrap())
    }
}

/// The length of the difference, in parts of the length of what is expected.
fn error(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (numbers(found), numbers(expected));
    let length = |x: f64, y: f64| x + y * y;
    let off = found.iter().zip(&expected).map(|(a, b)| a - b).fold(0.0, length);
    (off / expected.iter().copied().fold(0.0, length)).sqrt()
}

/// What multiplies layers here: what this machine has, its emulation, and f32.
fn all() -> impl Iterator<Item = Option<Isa>> {
    Isa::available().into_iter().map(Some).chain([None])
}

/// PyTorch 2.15 in bf16 against PyTorch in f32:
///
/// ```python
/// import torch
/// import torch.nn.functional as F
///
/// def run(inputs, weights, narrow):
///     x, w, bias, a, b = inputs
///     x, a, b = (t.clone().requires_grad_() for t in (x.bfloat16() if narrow else x, a, b))
///     with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
///         y = F.linear(x, w, bias) + 0.5 * F.linear(F.linear(x, a), b)
///     y.backward(weights.to(y.dtype))
///     return [t.float() for t in (y.detach(), x.grad, a.grad, b.grad)]
///
/// for rows, features, out_features, rank in ((300, 256, 256, 64), (300, 128, 512, 16)):
///     generator = torch.Generator("cpu").manual_seed(7)
///     draw = lambda *shape: torch.randn(shape, generator=generator)
///     rounded = lambda t: t.bfloat16().float()
///     x, w, bias = rounded(draw(rows, features)), rounded(draw(out_features, features)), rounded(draw(out_features))
///     a, b, weights = draw(rank, features), draw(out_features, rank), rounded(draw(rows, out_features))
///     inputs = (x, w, bias, a, b)
///     exact, found = run(inputs, weights, False), run(inputs, weights, True)
///     print([f"{((f - e).norm() / e.norm()).item():.2e}" for f, e in zip(found, exact)])
/// ```
#[test]
fn the_errors_of_a_layer_and_its_gradients_are_at_most_pytorchs() {
    for (sizes, torch) in [
        ([300, 256, 256, 64], [3.67e-3, 3.67e-3, 2.91e-3, 2.87e-3]),
        ([300, 128, 512, 16], [3.52e-3, 3.52e-3, 2.75e-3, 2.83e-3]),
    ] {
        let inputs = Inputs::new(sizes);
        let exact = inputs.run(None, DType::F32, None);
        for isa in all() {
            let found = inputs.run(isa, DType::BF16, None);
            for (i, ((found, exact), torch)) in found.iter().zip(&exact).zip(torch).enumerate() {
                let error = error(found, exact);
                assert!(error <= torch, "{isa:?} {sizes:?}, part {i}: {error:.2e}");
            }
        }
    }
}

#[test]
fn tiles_and_their_emulation_give_a_layer_the_same_bits() {
    let inputs = Inputs::new([37, 70, 45, 6]);
    for dropped in [None, Some(Mask::new(0.3, 5, 2))] {
        let emulated = inputs.run(Some(Isa::Emulated), DType::BF16, dropped);
        #[cfg(target_arch = "x86_64")]
        if Isa::available().contains(&Isa::Amx) {
            let tiles = inputs.run(Some(Isa::Amx), DType::BF16, dropped);
            for (tiles, emulated) in tiles.iter().zip(&emulated) {
                assert_close("tiles", tiles, emulated, 0.0);
            }
        }
        // Everywhere: what is emulated is a layer.
        let wide = inputs.run(None, DType::F32, dropped);
        for (emulated, wide) in emulated.iter().zip(&wide) {
            assert!(error(emulated, wide) < 4e-3);
        }
    }
}

#[test]
fn dropout_leaves_the_same_numbers_out() {
    let inputs = Inputs::new([40, 64, 32, 8]);
    let mask = Some(Mask::new(0.4, 3, 1));
    let exact = inputs.run(None, DType::F32, mask);
    for isa in all() {
        let found = inputs.run(isa, DType::BF16, mask);
        for (i, (found, exact)) in found.iter().zip(&exact).enumerate() {
            let error = error(found, exact);
            assert!(error < 4e-3, "{isa:?}, part {i}: {error:.2e}");
        }
    }
}

#[test]
fn threads_change_no_bit_of_a_layer_in_bf16() {
    let inputs = Inputs::new([1100, 64, 40, 4]);
    for isa in Isa::available() {
        assert_same_on_all_threads(|| inputs.run(Some(isa), DType::BF16, None).to_vec());
    }
}

#[test]
fn a_row_of_a_layer_in_bf16_depends_on_its_row_alone() {
    let inputs = Inputs::new([50, 64, 40, 4]);
    for isa in all().filter(Option::is_some) {
        let layer = Frozen::new(inputs.weight.clone(), Some(inputs.bias.clone())).multiplying_by(isa);
        let adapter = LowRank {
            a: &inputs.a,
            b: &inputs.b,
            scale: SCALE,
        };
        let whole = layer.forward_with(&inputs.x, adapter.clone()).unwrap();
        for (first, count) in [(0, 1), (1, 40), (41, 9)] {
            let part = inputs.x.narrow(0, first, count).unwrap();
            let found = layer.forward_with(&part, adapter.clone()).unwrap();
            assert_close("rows", &found, &whole.narrow(0, first, count).unwrap(), 0.0);
        }
    }
}

#[test]
fn a_matrix_in_f32_keeps_all_its_digits_beside_an_input_in_bf16() {
    let mut inputs = Inputs::new([10, 64, 40, 4]);
    inputs.weight = draw(&mut Rng::new(3), (40, 64));
    let exact = inputs.run(None, DType::BF16, None);
    for isa in all() {
        let found = inputs.run(isa, DType::BF16, None);
        for (found, exact) in found.iter().zip(&exact) {
            assert_close("f32", found, exact, 0.0);
        }
    }
}

#[test]
fn nothing_gives_nothing_in_bf16() {
    for (count, features, out_features, rank) in [(0, 4, 3, 2), (5, 4, 0, 2), (5, 0, 3, 2), (5, 4, 3, 0)] {
        let zeros = |rows: usize, cols: usize| Tensor::zeros((rows, cols), DType::BF16, &super::Device::Cpu).unwrap();
        let inputs = Inputs {
            x: zeros(count, features),
            weight: zeros(out_features, features),
            bias: zeros(1, out_features).squeeze(0).unwrap(),
            a: zeros(rank, features),
            b: zeros(out_features, rank),
            gradient: zeros(count, out_features),
        };
        for isa in all() {
            let found = inputs.run(isa, DType::BF16, None);
            for (found, expected) in found.iter().zip([&inputs.gradient, &inputs.x, &inputs.a, &inputs.b]) {
                assert_close("zeros", found, expected, 0.0);
            }
        }
    }
}
