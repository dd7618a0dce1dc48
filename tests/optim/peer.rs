//! AdamW against candle-nn's, an implementation that shares no code or author with ours or torch's.

use candle_nn::optim::{Optimizer, ParamsAdamW};

use super::*;

/// Their variables after 20 steps.
fn theirs(config: &Config, values: &[Tensor], gradients: &[Vec<Tensor>]) -> Vec<Var> {
    let vars = variables(values);
    let params = ParamsAdamW {
        lr: rate(0),
        beta1: config.beta1,
        beta2: config.beta2,
        eps: config.epsilon,
        weight_decay: config.weight_decay,
    };
    let mut optimizer = candle_nn::AdamW::new(vars.clone(), params).unwrap();
    for (step, gradients) in gradients.iter().enumerate() {
        optimizer.set_learning_rate(rate(step));
        // The gradient of sum(variable * g) is g.
        let products = vars
            .iter()
            .zip(gradients)
            .map(|(var, g)| (var.as_tensor() * g).unwrap());
        let loss = products
            .map(|product| product.sum_all().unwrap())
            .reduce(|a, b| (a + b).unwrap());
        optimizer.step(&loss.unwrap().backward().unwrap()).unwrap();
    }
    vars
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
            let error = error(var, &theirs);
            println!("{run} {:?}: {error:.1e}", var.dims());
            assert!(error <= 1e-6, "{run}: {error:e}");
        }
    }
}
