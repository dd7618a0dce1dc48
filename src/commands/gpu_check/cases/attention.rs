//! Attention, and attention twice.

use std::str::FromStr;

use candle_core::{DType, Device, Result, Tensor};

use super::{Case, input};
use crate::commands::gpu_check::row::{Row, difference};
use crate::ops::attention::{attention, way};
use crate::rng::Rng;

/// `17776x64`: number of tokens, and features per head.
#[derive(Debug, Clone, Copy)]
pub struct Tokens {
    count: usize,
    width: usize,
}

impl FromStr for Tokens {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let sizes = text.split_once('x').and_then(|(count, width)| {
            let (count, width) = (count.parse().ok()?, width.parse().ok()?);
            (count > 0 && width > 0).then_some(Self { count, width })
        });
        sizes.ok_or_else(|| format!("'{text}' is not of the form TOKENSxFEATURES"))
    }
}

/// Batch, queries, keys, heads, features per head.
type Heads = [usize; 5];

fn attending(name: impl Into<String>, [batch, queries, keys, heads, width]: Heads) -> Case {
    let inputs = [
        input("q", &[batch, queries, heads, width]),
        input("k", &[batch, keys, heads, width]),
        input("v", &[batch, keys, heads, width]),
    ];
    Case::new(name, inputs, |given| attention(&given[0], &given[1], &given[2], None))
}

/// Attention to all keys.
pub fn whole() -> Vec<Case> {
    vec![
        attending("attention 64", [2, 333, 333, 3, 64]),
        attending("attention 128", [1, 300, 300, 2, 128]),
        attending("attention across", [2, 200, 77, 3, 96]),
        attending("attention 256", [1, 70, 90, 1, 256]),
        attending("attention tiled", [2, 45, 61, 3, 12]), // not a multiple of 8 features: never cuDNN's
    ]
}

/// Attention of one head over as many tokens as in a clip.
pub fn long(long: &[Tokens]) -> Vec<Case> {
    let case = |Tokens { count, width }: &Tokens| {
        attending(format!("attention {count} x {width}"), [1, *count, *count, 1, *width])
    };
    long.iter().map(case).collect()
}

/// Attention to keys of which some are hidden.
pub fn masked() -> Vec<Case> {
    let case = |name, [batch, queries, keys, heads, width]: Heads| {
        let inputs = [
            input("q", &[batch, queries, heads, width]),
            input("k", &[batch, keys, heads, width]),
            input("v", &[batch, keys, heads, width]),
        ];
        Case::new(name, inputs, move |given| {
            let length = |sample: usize| keys - (sample + 1) * keys / 4; // the fourth sample sees none
            let hidden = |at: usize| at % keys >= length(at / keys);
            let mask: Vec<f32> = (0..batch * keys)
                .map(|at| if hidden(at) { f32::NEG_INFINITY } else { 0.0 })
                .collect();
            let mask = Tensor::from_vec(mask, (batch, 1, 1, keys), given[0].device())?;
            attention(&given[0], &given[1], &given[2], Some(&mask))
        })
    };
    vec![
        case("attention 64, padded keys", [2, 130, 96, 3, 64]),
        case("attention tiled, padded keys", [2, 45, 61, 3, 12]),
        case("attention 64, a sample without keys", [4, 70, 96, 2, 64]),
        case("attention tiled, a sample without keys", [4, 45, 60, 3, 12]),
    ]
}

/// Compares two runs of attention in bf16 and its gradients: the same bits, if required.
pub fn repeated(device: &Device, rng: &mut Rng) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for case in whole() {
        let mut draw = |shape: &[usize]| {
            let numbers = rng.randn(shape.iter().product());
            Tensor::from_vec(numbers, shape, &Device::Cpu)?
                .to_dtype(DType::BF16)?
                .to_device(device)
        };
        let inputs: Vec<Tensor> = case
            .inputs
            .iter()
            .map(|input| draw(&input.shape))
            .collect::<Result<_>>()?;
        let gradient = draw(&case.inputs[0].shape)?; // the output is as the queries
        way::take();
        let [first, second] = [(); 2].map(|()| case.results(&inputs, &gradient));
        let attention = way::take();
        for ((what, first), (_, second)) in first?.iter().zip(&second?) {
            rows.push(Row {
                what: format!("{} {what} once more", case.name),
                error: difference(second, first)?,
                most: 0.0,
                attention: attention.clone(),
            });
        }
    }
    Ok(rows)
}
