//! Compares matrices in few bits on a GPU with the CPU: what they are decoded to, bit for bit, and layers over them.

use candle_core::{DType, Device, Result, Tensor};

use super::cases::{Case, input};
use super::row::{Row, difference, poison};
use crate::nn::storage::quantize::Quantization;
use crate::ops::linear::{Frozen, LowRank};
use crate::ops::stored::Weight;
use crate::rng::Rng;

/// Matrices (out, in) of whole blocks of every form, and of none.
const SHAPES: [(usize, usize); 2] = [(384, 512), (51, 37)];

fn matrix((rows, columns): (usize, usize), rng: &mut Rng) -> Result<Tensor> {
    let numbers = rng.randn(rows * columns);
    Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)? * (columns as f64).powf(-0.5)
}

/// Decodes every form in both types.
pub fn decoded(device: &Device, rng: &mut Rng) -> Result<Vec<Row>> {
    let mut found = Vec::new();
    for shape in SHAPES {
        let dense = matrix(shape, rng)?;
        for form in Quantization::all() {
            let (here, there) = (form.store(&dense, &Device::Cpu)?, form.store(&dense, device)?);
            for dtype in [DType::F32, DType::BF16] {
                poison(device)?;
                let rows = 1..shape.0;
                found.push(Row {
                    what: format!("{} {shape:?} decoded {dtype:?}", form.name()),
                    error: difference(&there.rows(rows.clone(), dtype)?, &here.rows(rows, dtype)?)?,
                    most: 0.0,
                    attention: Vec::new(),
                });
            }
        }
    }
    Ok(found)
}

/// Layers with adapters over every form, there and back.
pub fn layers(rng: &mut Rng) -> Result<Vec<Case>> {
    let (out, features, rank) = (384, 512, 32);
    let small = (features as f64).powf(-0.5);
    let dense = matrix((out, features), rng)?;
    let case = |form: Quantization| {
        let inputs = [
            input("x", &[2, 200, features]),
            input("a", &[rank, features]).wide().times(small),
            input("b", &[out, rank]).wide().times(0.1),
        ];
        let dense = dense.clone();
        Case::new(format!("lora linear over {}", form.name()), inputs, move |given| {
            let stored = form.store(&dense, given[0].device())?;
            let adapter = LowRank {
                a: &given[1],
                b: &given[2],
                scale: 0.7,
            };
            Frozen::new(Weight::Stored(stored), None).forward_with(&given[0], adapter)
        })
    };
    Ok(Quantization::all().map(case).collect())
}
