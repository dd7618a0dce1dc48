//! Factors of one step of AdamW, and its formula on the CPU: in a single pass, and in candle's operations.

use candle_core::{Result, Tensor, Var};

use super::config::Config;
use super::launch;

/// Factors of one step, shared by all variables.
pub struct Update {
    scale: f64,
    decay: f64,
    beta1: f64,
    beta2: f64,
    step_size: f64,
    bias_correction2_sqrt: f64,
    epsilon: f64,
}

impl Update {
    /// Factors of step `step`, counted from 1.
    pub fn new(config: &Config, step: usize, scale: f64, lr: f64) -> Self {
        Self {
            scale,
            decay: 1.0 - lr * config.weight_decay,
            beta1: config.beta1,
            beta2: config.beta2,
            step_size: lr / (1.0 - config.beta1.powf(step as f64)),
            bias_correction2_sqrt: (1.0 - config.beta2.powf(step as f64)).sqrt(),
            epsilon: config.epsilon,
        }
    }

    /// Returns the factors as a GPU takes them.
    pub fn on_gpu(&self) -> launch::Update {
        launch::Update {
            scale: self.scale as f32,
            decay: self.decay as f32,
            weight1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            weight2: (1.0 - self.beta2) as f32,
            step_size: self.step_size as f32,
            correction: self.bias_correction2_sqrt as f32,
            epsilon: self.epsilon as f32,
        }
    }

    /// Single pass over parameters `p`, gradient `g`, moments `m` and `v`, all of the same length.
    pub fn pass(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let (scale, decay, step_size) = (self.scale as f32, self.decay as f32, self.step_size as f32);
        let (weight1, beta2, weight2) = ((1.0 - self.beta1) as f32, self.beta2 as f32, (1.0 - self.beta2) as f32);
        let (correction, epsilon) = (self.bias_correction2_sqrt as f32, self.epsilon as f32);
        for ((p, g), (m, v)) in p.iter_mut().zip(g).zip(m.iter_mut().zip(v)) {
            let g = g * scale;
            *m += weight1 * (g - *m);
            *v = beta2 * *v + weight2 * g * g;
            *p = decay * *p - step_size * (*m / (v.sqrt() / correction + epsilon));
        }
    }

    /// Same update in candle's operations, on any device; returns the new moments.
    pub fn operations(
        &self,
        var: &Var,
        gradient: &Tensor,
        exp_avg: &Tensor,
        exp_avg_sq: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let g = (gradient.to_dtype(var.dtype())? * self.scale)?;
        let m = ((exp_avg * self.beta1)? + (&g * (1.0 - self.beta1))?)?;
        let v = ((exp_avg_sq * self.beta2)? + (g.sqr()? * (1.0 - self.beta2))?)?;
        let denominator = ((v.sqrt()? / self.bias_correction2_sqrt)? + self.epsilon)?;
        let moved = ((var.as_detached_tensor() * self.decay)? - ((&m / denominator)? * self.step_size)?)?;
        var.set(&moved)?;
        Ok((m, v))
    }
}

impl Config {
    /// Returns the factors of step `step`, counted from 1, as a GPU takes them. Gradients are multiplied by `scale`
    /// first.
    pub fn update(&self, step: usize, scale: f64, lr: f64) -> launch::Update {
        Update::new(self, step, scale, lr).on_gpu()
    }
}
