//! AdamW against `candle-optimisers`, an implementation that shares no code or author with ours or torch's. It holds
//! another candle, so numbers cross as plain lists.

use candle_core_010 as peer;
use candle_nn_010::optim::Optimizer;
use candle_optimisers::Decay;
use candle_optimisers::adam::{Adam, ParamsAdam};

use super::*;

/// The variables behind 20 steps of theirs.
fn theirs(config: &Config, values: &[Tensor], gradients: &[Vec<Tensor>]) -> Vec<Vec<f32>> {
    let cross = |tensor: &Tensor| {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        peer::Tensor::from_vec(values, tensor.dims(), &peer::Device::Cpu).unwrap()
    };
    let vars: Vec<peer::Var> = values
        .iter()
        .map(|v| peer::Var::from_tensor(&cross(v)).unwrap())
        .collect();
    let params = ParamsAdam {
        lr: rate(0),
        beta_1: config.beta1,
        beta_2: config.beta2,
        eps: config.epsilon,
        weight_decay: Some(Decay::DecoupledWeightDecay(config.weight_decay)),
        amsgrad: false,
    };
    let mut optimizer = Adam::new(vars.clone(), params).unwrap();
    for (step, gradients) in gradients.iter().enumerate() {
        optimizer.set_learning_rate(rate(step));
        // The gradient of sum(variable * g) is g.
        let products = vars
            .iter()
            .zip(gradients)
            .map(|(var, g)| (var.as_tensor() * cross(g)).unwrap());
        let loss = products
            .map(|product| product.sum_all().unwrap())
            .reduce(|a, b| (a + b).unwrap());
        optimizer.step(&loss.unwrap().backward().unwrap()).unwrap();
    }
    vars.iter()
        .map(|var| var.flatten_all().unwrap().to_vec1().unwrap())
        .collect()
}

#[test]
fn an_independent_adamw_walks_the_same_way() {
    let (values, gradients) = draws(DType::F32);
    for run in ["plain", "decay"] {
        let config = settings(run);
        let vars = variables(&values);
        let mut optimizer = AdamW::new(vars.clone(), &config).unwrap();
        for (step, gradients) in gradients.iter().enumerate() {
            optimizer.step(gradients, 1.0, rate(step)).unwrap();
        }
        for (var, theirs) in vars.iter().zip(theirs(&config, &values, &gradients)) {
            let theirs = Tensor::from_vec(theirs, var.dims(), &Device::Cpu).unwrap();
            let error = error(var, &theirs);
            println!("{run} {:?}: {error:.1e}", var.dims());
            assert!(error <= 1e-6, "{run}: {error:e}");
        }
    }
}
