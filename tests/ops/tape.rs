use candle_core::{Result, Tensor, Var};
use vtrain::ops::activation::{gelu_tanh, silu};
use vtrain::ops::attention;
use vtrain::ops::linear::{Frozen, LowRank};
use vtrain::ops::residual::gated_residual;
use vtrain::ops::tape::{SavedOutputs, Tape, no_grad, record, record_from, save_costly};
use vtrain::ops::vjp::Cotangent;

use super::assert_close;
use super::elementwise::randn;

/// Something like a block: ops, candle's own operations between them, and tensors that several of both read.
struct Block {
    x: Var,
    gate: Var,
    a: Var,
    b: Var,
    layer: Frozen,
}

impl Block {
    fn new() -> Self {
        let var = |seed, shape: &[usize]| Var::from_tensor(&randn(seed, shape)).unwrap();
        let layer = Frozen::new(randn(5, &[12, 12]), Some(randn(6, &[12])));
        Self {
            x: var(1, &[2, 5, 12]),
            gate: var(2, &[2, 2, 12]),
            a: var(3, &[4, 12]),
            b: var(4, &[12, 4]),
            layer,
        }
    }

    fn vars(&self) -> [&Var; 4] {
        [&self.x, &self.gate, &self.a, &self.b]
    }

    fn run(&self) -> Result<Tensor> {
        let adapter = LowRank {
            a: &self.a,
            b: &self.b,
            scale: 0.5,
        };
        let heads = |x: &Tensor| x.reshape((2, 5, 3, 4));
        let q = self.layer.forward_with(&self.x, adapter)?; // (2, 5, 12)
        let k = (silu(&q)? + self.x.as_tensor())?; // an op's result into candle's addition
        let out = attention(&heads(&q)?, &heads(&k)?, &heads(&self.x)?, None)?.reshape((2, 5, 12))?;
        let parts = Tensor::cat(&[out.narrow(1, 2, 3)?, out.narrow(1, 0, 2)?], 1)?; // neither is the whole
        let x = gated_residual(&self.x, &parts, &self.gate, &[2, 3])?;
        gated_residual(&x, &gelu_tanh(&self.layer.forward(&x)?)?, &self.gate, &[2, 3])
    }

    fn gradients(&self, tape: Tape, output: &Tensor) -> Vec<Tensor> {
        let given = Cotangent {
            output: output.clone(),
            gradient: randn(7, &[2, 5, 12]),
        };
        let mut gradients = tape.backward(&[given]).unwrap();
        self.vars()
            .iter()
            .map(|var| gradients.remove(var).unwrap().unwrap())
            .collect()
    }
}

#[test]
fn a_tape_leads_back_to_the_gradients_that_candles_graph_has() {
    let block = Block::new();
    let store = (block.run().unwrap() * randn(7, &[2, 5, 12])).unwrap();
    let store = store.sum_all().unwrap().backward().unwrap();
    let (output, tape) = record(|| block.run()).unwrap();
    assert_close("output", &output, &block.run().unwrap(), 0.0);
    for (var, found) in block.vars().iter().zip(block.gradients(tape, &output)) {
        assert_close("gradient", &found, store.get(var).unwrap(), 1e-6);
    }
}

#[test]
fn a_stretch_that_is_run_again_has_the_same_bits_with_and_without_a_shelf() {
    let block = Block::new();
    let (output, tape) = record(|| block.run()).unwrap();
    let expected = block.gradients(tape, &output);

    let forgotten = no_grad(|| block.run()).unwrap();
    assert_close("output", &forgotten, &output, 0.0);
    let (first, shelf) = save_costly(|| block.run()).unwrap();
    assert_close("output", &first, &output, 0.0);
    assert_eq!(
        shelf.bytes(),
        4 * (2 * 5 * 12 + 2 * 5 * 3),
        "attention's output and its sums"
    );
    for shelf in [SavedOutputs::default(), shelf] {
        let (second, tape) = record_from(shelf, || block.run()).unwrap();
        assert_close("output", &second, &output, 0.0);
        for (found, expected) in block.gradients(tape, &second).iter().zip(&expected) {
            assert_close("gradient", found, expected, 0.0);
        }
    }
}

#[test]
fn the_shelf_of_something_else_is_refused() {
    let (_, shelf) = save_costly(|| Block::new().run()).unwrap();
    assert!(record_from(shelf, || silu(&Block::new().x)).is_err());
}

#[test]
fn only_what_the_way_back_reads_is_held() {
    let block = Block::new();
    let held = |compute: &dyn Fn() -> Result<Tensor>| record(compute).unwrap().1.bytes();
    let x = 4 * 2 * 5 * 12;
    assert_eq!(held(&|| silu(&block.x)), x);
    assert!(
        held(&|| block.layer.forward(&block.x)) <= 8,
        "a frozen layer reads nothing"
    );
    assert!(held(&|| silu(&block.layer.forward(&block.x)?)) <= x + 8);
    let twice = || silu(&block.x)? + gelu_tanh(&block.x)?;
    assert_eq!(held(&twice), x, "two ops hold it together");
}

#[test]
fn nothing_is_noted_after_a_stretch_that_failed() {
    assert!(record(|| Block::new().x.reshape(7)).is_err());
    let x = Var::from_tensor(&randn(1, &[3])).unwrap();
    let store = silu(&x).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(store.get(&x).is_some(), "candle's graph is back");
}
