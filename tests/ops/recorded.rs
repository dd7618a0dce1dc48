//! Operations while allocations are recorded, as a plan of memory does: they take their memory, and compute nothing.

use candle_core::{DType, Result, Tensor, Var};
use vtrain::ops::activation::{gelu_erf, gelu_tanh, silu};
use vtrain::ops::add::add;
use vtrain::ops::attention;
use vtrain::ops::join::join;
use vtrain::ops::linear::{Frozen, LowRank};
use vtrain::ops::norm::{Norm, NormKind};
use vtrain::ops::residual::gated_residual;
use vtrain::ops::rotary::{PairLayout, Rotation};
use vtrain::ops::swiglu::swiglu;
use vtrain::ops::tape::record;
use vtrain::ops::vjp::Cotangent;
use vtrain::process::allocations;

use super::elementwise::randn;
use super::numbers;

const WIDTH: usize = 32;

/// An op of the inputs that follow it.
type Op = fn(&[Var]) -> Result<Tensor>;

/// Ops, each with the shapes of its inputs, and whether their gradients are its own work. What passes a gradient on as it is
/// computes nothing in any case.
fn ops() -> Vec<(&'static str, Op, Vec<Vec<usize>>, bool)> {
    let x = || vec![2, 6, WIDTH];
    let table = || vec![2, 2, WIDTH];
    let heads = || vec![2, 6, 2, 16];
    vec![
        ("GELU", |v| gelu_erf(&v[0]), vec![x()], true),
        ("GELU by tanh", |v| gelu_tanh(&v[0]), vec![x()], true),
        ("SiLU", |v| silu(&v[0]), vec![x()], true),
        ("SwiGLU", |v| swiglu(&v[0]), vec![x()], true),
        ("sum", |v| add(&v[0], &v[1]), vec![x(), x()], false),
        ("join", |v| join(&v[0], &v[1], 1), vec![x(), x()], false),
        (
            "gated residual",
            |v| gated_residual(&v[0].detach(), &v[1], &v[2], &[2, 4]),
            vec![x(), x(), table()],
            true,
        ),
        (
            "layer norm",
            |v| normed(NormKind::Layer, v),
            vec![x(), table(), table()],
            true,
        ),
        (
            "RMS norm",
            |v| normed(NormKind::Rms, v),
            vec![x(), table(), table()],
            true,
        ),
        (
            "rotation",
            |v| {
                let turn = Rotation {
                    cos: randn(8, &[6, 8]),
                    sin: randn(9, &[6, 8]),
                    pairs: PairLayout::Halves,
                    first: 0,
                };
                turn.forward(&v[0])
            },
            vec![heads()],
            true,
        ),
        (
            "attention",
            |v| attention(&v[0], &v[1], &v[2], None),
            vec![heads(), heads(), heads()],
            true,
        ),
        (
            "linear layer with an adapter",
            |v| {
                let (a, b) = (&v[1].to_dtype(DType::F32)?, &v[2].to_dtype(DType::F32)?);
                let layer = Frozen::new(v[3].as_detached_tensor(), None);
                layer.forward_with(&v[0], LowRank { a, b, scale: 0.5 })
            },
            vec![x(), vec![4, WIDTH], vec![WIDTH, 4], vec![WIDTH, WIDTH]],
            true,
        ),
    ]
}

fn normed(kind: NormKind, v: &[Var]) -> Result<Tensor> {
    let norm = Norm {
        kind,
        eps: 1e-6,
        parts: vec![2, 4],
    };
    norm.forward(&v[0], &v[1], &v[2])
}

/// Runs an op, and the way back from ones; returns its output and the gradients that there are.
fn run(op: Op, inputs: &[Var]) -> Vec<Tensor> {
    let (output, tape) = record(|| op(inputs)).unwrap();
    let given = Cotangent {
        gradient: output.ones_like().unwrap().detach(),
        output: output.clone(),
    };
    let mut gradients = tape.backward(&[given]).unwrap();
    let gradients = inputs.iter().filter_map(|input| gradients.remove(input).unwrap());
    [output].into_iter().chain(gradients).collect()
}

fn is_zero(x: &Tensor) -> bool {
    numbers(x).iter().all(|number| *number == 0.0)
}

#[test]
fn while_allocations_are_recorded_ops_take_their_memory_and_compute_nothing() {
    for dtype in [DType::F32, DType::BF16] {
        for (name, op, shapes, has_own_gradients) in ops() {
            let inputs = shapes.iter().enumerate().map(|(seed, shape)| {
                let drawn = randn(seed as u64, shape).to_dtype(dtype).unwrap();
                Var::from_tensor(&drawn).unwrap()
            });
            let inputs: Vec<Var> = inputs.collect();
            let (computed, recorded) = (run(op, &inputs), allocations::record(|| run(op, &inputs)).0);
            assert_eq!(computed.len(), recorded.len(), "{name} in {dtype:?}");
            for (index, (computed, recorded)) in computed.iter().zip(&recorded).enumerate() {
                assert_eq!(computed.dims(), recorded.dims(), "{name} in {dtype:?}: {index}");
                assert!(!is_zero(computed), "{name} in {dtype:?}: {index}");
                if index == 0 || has_own_gradients {
                    assert!(is_zero(recorded), "{name} in {dtype:?}: {index} is computed");
                }
            }
        }
    }
}
