//! Compares the optimiser on a GPU with the CPU: the norm of all gradients, and some steps.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::row::{Row, difference, most, poison};
use crate::optim::adamw::{AdamW, Config, Name};
use crate::optim::clip;
use crate::rng::Rng;

/// Shapes of variables that fill pieces, and of others that do not.
const SHAPES: [[usize; 2]; 4] = [[128, 1920], [1920, 128], [5, 37], [1, 1]];

pub fn compare(device: &Device, rng: &mut Rng) -> Result<Vec<Row>> {
    let mut draw = |scale: f64| -> Result<Vec<Tensor>> {
        let one = |[rows, columns]: [usize; 2], rng: &mut Rng| {
            Tensor::from_vec(rng.randn(rows * columns), (rows, columns), &Device::Cpu)? * scale
        };
        SHAPES.into_iter().map(|shape| one(shape, &mut *rng)).collect()
    };
    let start = draw(0.1)?;
    let gradients = [draw(1.0)?, draw(1.0)?, draw(1.0)?];
    let row = |what: String, error: f64, most: f64| Row {
        what,
        error,
        most,
        attention: Vec::new(),
    };
    let mut rows = Vec::new();
    // Moments in 8 bits that lie halfway between two values may go to either.
    for (name, said, most) in [
        (Name::Adamw, "AdamW", most(DType::F32)),
        (Name::Adamw8bit, "AdamW in 8 bits", 1e-3),
    ] {
        poison(device)?;
        let (our_norms, ours) = run(name, &start, &gradients, device)?;
        let (their_norms, theirs) = run(name, &start, &gradients, &Device::Cpu)?;
        if name == Name::Adamw {
            let error = difference(&our_norms, &their_norms)?;
            rows.push(row("norm of all gradients".into(), error, most));
        }
        for ((ours, theirs), shape) in ours.iter().zip(&theirs).zip(SHAPES) {
            let error = difference(ours, theirs)?;
            rows.push(row(format!("three steps of {said}, {shape:?}"), error, most));
        }
    }
    Ok(rows)
}

/// Returns the norms before clipping, and the final variables.
fn run(name: Name, start: &[Tensor], gradients: &[Vec<Tensor>], device: &Device) -> Result<(Tensor, Vec<Tensor>)> {
    let var = |tensor: &Tensor| Var::from_tensor(&tensor.to_device(device)?);
    let vars: Vec<Var> = start.iter().map(var).collect::<Result<_>>()?;
    let config = Config {
        name,
        weight_decay: 0.1,
        ..Config::default()
    };
    let mut optimiser = AdamW::new(vars.clone(), &config)?;
    let mut norms = Vec::new();
    for gradients in gradients {
        let here: Vec<Tensor> = gradients
            .iter()
            .map(|tensor| tensor.to_device(device))
            .collect::<Result<_>>()?;
        let norm = clip::global_norm(&here)?;
        optimiser.step(&here, clip::coefficient(norm, 1.0), 1e-2)?;
        norms.push(norm);
    }
    let norms = Tensor::new(norms, &Device::Cpu)?;
    Ok((norms, vars.into_iter().map(Var::into_inner).collect()))
}
