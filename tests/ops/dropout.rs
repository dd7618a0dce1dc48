use candle_core::{DType, Result, Tensor, Var};
use vtrain::ops::dropout::Mask;
use vtrain::ops::linear::{Frozen, LowRank};
use vtrain::ops::tape::record;
use vtrain::ops::vjp::Cotangent;

use super::elementwise::{numbers, randn};
use super::{assert_close, assert_same_on_all_threads};

const P: f64 = 0.3;
const SCALE: f64 = 0.75;

/// Returns which of 32 numbers from `first` on are kept.
fn kept(mask: &Mask, first: u64) -> String {
    (first..first + 32)
        .map(|i| if mask.keeps(i) { '1' } else { '0' })
        .collect()
}

/// ```python
/// M, G = (1 << 64) - 1, 0x9e3779b97f4a7c15
/// def mix(at):
///     z = (at + G) & M
///     z = ((z ^ (z >> 30)) * 0xbf58476d1ce4e5b9) & M
///     z = ((z ^ (z >> 27)) * 0x94d049bb133111eb) & M
///     return z ^ (z >> 31)
/// def kept(p, seed, layer, i):
///     return int(mix((mix(mix(seed) ^ layer) + G * i) & M) >> 32 >= int(p * 2**32))
/// for p, seed, layer, first in [(0.3, 9, 0, 0), (0.5, 2**63 + 5, 41, 2**32 - 8)]:
///     print("".join(str(kept(p, seed, layer, first + i)) for i in range(32)))
/// ```
#[test]
fn masks_are_those_of_splitmix64() {
    assert_eq!(kept(&Mask::new(0.3, 9, 0), 0), "10011110111011100110111111011010");
    let far = Mask::new(0.5, (1 << 63) + 5, 41);
    assert_eq!(kept(&far, (1 << 32) - 8), "00001011110000100010101111001111");
}

#[test]
fn a_mask_has_the_same_bits_on_any_number_of_threads_and_hides_no_nan() {
    let mask = Mask::new(P, 4, 2);
    let ones = vec![1f32; 50_001];
    assert_same_on_all_threads(|| {
        let mut masked = ones.clone();
        mask.apply(&mut masked);
        assert!(
            masked
                .iter()
                .enumerate()
                .all(|(i, x)| (*x == 1.0) == mask.keeps(i as u64))
        );
        vec![Tensor::new(masked, &candle_core::Device::Cpu).unwrap()]
    });
    let mut nothing = vec![f32::NAN; 100];
    mask.apply(&mut nothing);
    assert!(nothing.iter().all(|x| x.is_nan()));
}

struct Layer {
    x: Tensor,
    a: Tensor,
    b: Tensor,
    frozen: Frozen,
    gradient: Tensor,
}

impl Layer {
    /// 3 x 7 rows of 10 features to 13, in the type of an activation.
    fn new(dtype: DType) -> Self {
        let narrow = |x: Tensor| x.to_dtype(dtype).unwrap();
        Self {
            x: narrow(randn(1, &[3, 7, 10])),
            a: randn(2, &[4, 10]),
            b: randn(3, &[13, 4]),
            frozen: Frozen::new(narrow(randn(4, &[13, 10])), Some(narrow(randn(5, &[13])))),
            gradient: narrow(randn(6, &[3, 7, 13])),
        }
    }

    fn fused(&self, [x, a, b]: [&Tensor; 3], mask: Option<Mask>) -> Result<Tensor> {
        self.frozen.forward_dropping(x, LowRank { a, b, scale: SCALE }, mask)
    }

    /// The adapter apart from the layer, on a mask that is a tensor.
    fn by_hand(&self, [x, a, b]: [&Tensor; 3], mask: Mask) -> Result<Tensor> {
        let rows = mask.forward(&x.to_dtype(DType::F32)?)?.reshape((21, 10))?;
        let up = (rows.matmul(&a.t()?)?.matmul(&b.t()?)? * SCALE)?;
        self.frozen.forward(x)? + up.reshape((3, 7, 13))?.to_dtype(x.dtype())?
    }

    /// The output and the gradients of x, A and B of a recorded run, of which candle computed nothing if it is `fused`.
    fn all(&self, run: &dyn Fn([&Tensor; 3]) -> Result<Tensor>, fused: bool) -> Vec<Tensor> {
        let vars = [&self.x, &self.a, &self.b].map(|x| Var::from_tensor(x).unwrap());
        let (output, tape) = record(|| run(vars.each_ref().map(Var::as_tensor))).unwrap();
        assert_eq!(output.is_variable() && tape.by_candle().is_empty(), fused);
        let given = Cotangent {
            output: output.clone(),
            gradient: self.gradient.clone(),
        };
        let mut gradients = tape.backward(&[given]).unwrap();
        let gradients = vars.iter().map(|var| gradients.remove(var).unwrap().unwrap());
        [output.detach()].into_iter().chain(gradients).collect()
    }
}

#[test]
fn a_layer_that_drops_is_one_op_and_gives_what_the_adapter_apart_gives() {
    let mask = Mask::new(P, 7, 1);
    for (dtype, most) in [(DType::F32, 1e-6), (DType::BF16, 1e-2)] {
        let layer = Layer::new(dtype);
        let found = layer.all(&|inputs| layer.fused(inputs, Some(mask)), true);
        let expected = layer.all(&|inputs| layer.by_hand(inputs, mask), false);
        for ((part, found), expected) in ["y", "x", "a", "b"].iter().zip(&found).zip(&expected) {
            assert_close(&format!("{dtype:?} {part}"), found, expected, most);
        }
    }
}

#[test]
fn the_adapter_alone_does_not_see_what_is_dropped() {
    let layer = Layer::new(DType::F32);
    let inputs = [&layer.x, &layer.a, &layer.b];
    let nothing = Mask::new(0.0, 7, 1);
    let plain = numbers(&layer.fused(inputs, None).unwrap());
    assert_eq!(numbers(&layer.fused(inputs, Some(nothing)).unwrap()), plain);
    assert_ne!(numbers(&layer.fused(inputs, Some(Mask::new(P, 7, 1))).unwrap()), plain);
    // Where all but nothing is left, the adapter is silent.
    let most = Mask::new(1.0 - 1e-9, 7, 1);
    let frozen = layer.frozen.forward(&layer.x).unwrap();
    assert_eq!(numbers(&layer.fused(inputs, Some(most)).unwrap()), numbers(&frozen));
}
