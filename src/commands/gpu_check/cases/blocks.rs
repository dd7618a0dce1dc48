//! Ops of transformer blocks.

use super::{Case, Input, input};
use crate::ops::activation::{gelu_erf, gelu_tanh, silu};
use crate::ops::add::add;
use crate::ops::dropout::Mask;
use crate::ops::join::{join, part};
use crate::ops::linear::{Frozen, LowRank};
use crate::ops::norm::{Norm, NormKind};
use crate::ops::residual::gated_residual;
use crate::ops::rotary::{PairLayout, Rotation};
use crate::ops::swiglu::swiglu;

pub fn norms() -> Vec<Case> {
    let norm = |kind, parts: &[usize]| Norm {
        kind,
        eps: 1e-6,
        parts: parts.to_vec(),
    };
    let case = |name, norm: Norm, [batch, samples, width]: [usize; 3]| {
        let (rows, parts) = (norm.parts.iter().sum(), norm.parts.len());
        let table = [samples, parts, width];
        let inputs = [
            input("x", &[batch, rows, width]),
            input("gain", &table).wide(),
            input("offset", &table).wide(),
        ];
        Case::new(name, inputs, move |given| norm.forward(&given[0], &given[1], &given[2]))
    };
    vec![
        case("layer norm", norm(NormKind::Layer, &[300]), [2, 1, 1920]),
        case("layer norm by parts", norm(NormKind::Layer, &[26, 100]), [2, 2, 256]),
        case("layer norm odd", norm(NormKind::Layer, &[7, 12]), [3, 3, 131]),
        case("rms norm", norm(NormKind::Rms, &[200]), [2, 1, 2048]),
        case("rms norm odd", norm(NormKind::Rms, &[5, 6, 8]), [2, 2, 77]),
    ]
}

pub fn residuals() -> Vec<Case> {
    let case = |name, parts: &'static [usize], [batch, samples, width]: [usize; 3]| {
        let rows = parts.iter().sum();
        let inputs = [
            input("x", &[batch, rows, width]),
            input("update", &[batch, rows, width]),
            input("gate", &[samples, parts.len(), width]).wide(),
        ];
        Case::new(name, inputs, move |given| {
            gated_residual(&given[0], &given[1], &given[2], parts)
        })
    };
    let sum = [input("a", &[3, 17, 93]), input("b", &[3, 17, 93])];
    vec![
        Case::new("sum", sum, |given| add(&given[0], &given[1])),
        case("gated residual", &[226, 400], [2, 2, 1920]),
        case("gated residual odd", &[3, 14], [3, 1, 93]),
    ]
}

pub fn activations() -> Vec<Case> {
    let shape = [2, 333, 129]; // not a whole number of packs
    let x = || [input("x", &shape).times(2.0)];
    vec![
        Case::new("gelu", x(), |given| gelu_erf(&given[0])),
        Case::new("gelu (tanh)", x(), |given| gelu_tanh(&given[0])),
        Case::new("silu", x(), |given| silu(&given[0])),
        Case::new("swiglu", [input("x", &[2, 33, 2 * 512])], |given| swiglu(&given[0])),
        Case::new("swiglu odd", [input("x", &[3, 41, 2 * 37])], |given| swiglu(&given[0])),
    ]
}

pub fn rotary() -> Vec<Case> {
    let case = |name, pairs, table: &[usize], first| {
        let inputs = [
            input("x", &[2, 40, 6, 64]),
            input("cos", table).frozen().wide(),
            input("sin", table).frozen().wide(),
        ];
        Case::new(name, inputs, move |given| {
            let turn = Rotation {
                cos: given[1].clone(),
                sin: given[2].clone(),
                pairs,
                first,
            };
            turn.forward(&given[0])
        })
    };
    vec![
        case("rotary, neighbours", PairLayout::Neighbours, &[40, 32], 0),
        case("rotary, after text", PairLayout::Neighbours, &[33, 32], 7),
        case("rotary, halves", PairLayout::Halves, &[2, 40, 32], 0),
        case("rotary, halves of parts", PairLayout::HalvesOf(2), &[40, 32], 0),
        case("rotary, by head", PairLayout::Neighbours, &[40, 192], 0),
    ]
}

pub fn linear() -> Vec<Case> {
    let case = |name, [rows, features, out, rank]: [usize; 4], biased: bool, dropped: Option<Mask>| {
        let small = (features as f64).powf(-0.5);
        let inputs = [
            input("x", &[2, rows, features]),
            input("weight", &[out, features]).frozen().times(small),
            input("bias", &[out]).frozen(),
            input("a", &[rank.max(1), features]).wide().times(small),
            input("b", &[out, rank.max(1)]).wide().times(0.1),
        ];
        let adapted = rank > 0;
        let inputs = inputs.into_iter().map(move |input| Input {
            learns: input.learns && (adapted || input.name == "x"),
            ..input
        });
        Case::new(name, inputs, move |given| {
            let layer = Frozen::new(given[1].clone(), biased.then(|| given[2].clone()));
            let adapter = LowRank {
                a: &given[3],
                b: &given[4],
                scale: 0.7,
            };
            match adapted {
                true => layer.forward_dropping(&given[0], adapter, dropped),
                false => layer.forward(&given[0]),
            }
        })
    };
    let dropped = Some(Mask::new(0.3, 5, 2));
    vec![
        case("linear", [200, 512, 384, 0], true, None),
        case("linear without bias", [200, 512, 384, 0], false, None),
        case("linear odd", [33, 37, 51, 0], true, None),
        case("lora linear", [200, 512, 384, 32], true, None),
        case("lora linear odd", [33, 37, 51, 5], false, None),
        case("lora linear, dropout", [200, 512, 384, 32], true, dropped),
        case("lora linear odd, dropout", [33, 37, 51, 5], false, dropped),
    ]
}

/// Two streams that become one sequence, and parts of one.
pub fn sequences() -> Vec<Case> {
    let joined = |name, [first, second]: [&'static [usize]; 2], dim| {
        let inputs = [input("a", first), input("b", second)];
        Case::new(name, inputs, move |given| join(&given[0], &given[1], dim))
    };
    let cut = |name, shape: &'static [usize], dim, start, count| {
        Case::new(name, [input("x", shape)], move |given| {
            part(&given[0], dim, start, count)
        })
    };
    vec![
        joined("tokens joined", [&[2, 300, 256], &[2, 26, 256]], 1),
        joined("tokens of one sample joined", [&[1, 300, 256], &[1, 26, 256]], 1),
        joined("features joined, odd", [&[3, 7, 37], &[3, 7, 5]], 2),
        cut("part of the tokens", &[2, 326, 256], 1, 26, 300),
        cut("part of the tokens of one sample", &[1, 326, 256], 1, 26, 300),
        cut("part of the features, odd", &[3, 7, 37], 2, 5, 11),
    ]
}
