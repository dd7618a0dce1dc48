//! Configuration of `UniPCMultistepScheduler` for flow matching.

use anyhow::ensure;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{check_shift, check_terminal, check_train_timesteps, one, refuse, thousand, yes};

/// Settings, with the defaults of the class. Its noise by betas is rejected: `use_flow_sigmas` must be on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Timestep = sigma times this.
    #[serde(default = "thousand")]
    pub num_train_timesteps: usize,
    /// Steps that a step looks back to, itself included: 1 to 3.
    #[serde(default = "two")]
    pub solver_order: usize,
    #[serde(default)]
    prediction_type: Prediction,
    #[serde(default)]
    thresholding: bool,
    #[serde(default = "yes")]
    predict_x0: bool,
    /// Form of the solver's B(h).
    #[serde(default)]
    pub solver_type: SolverType,
    #[serde(default = "yes")]
    lower_order_final: bool,
    /// Steps whose result the next one does not correct.
    #[serde(default)]
    pub disable_corrector: Vec<usize>,
    #[serde(default)]
    solver_p: Option<serde_json::Value>,
    #[serde(default)]
    use_karras_sigmas: bool,
    #[serde(default)]
    use_exponential_sigmas: bool,
    #[serde(default)]
    use_beta_sigmas: bool,
    #[serde(default)]
    use_flow_sigmas: bool,
    /// sigma <- shift sigma / (1 + (shift - 1) sigma)
    #[serde(default = "one")]
    pub flow_shift: f64,
    /// Sigma after the last step.
    #[serde(default)]
    pub final_sigmas_type: FinalSigma,
    #[serde(default)]
    use_dynamic_shifting: bool,
    /// Last sigma, by stretching.
    #[serde(default)]
    pub shift_terminal: Option<f64>,

    // Unused with flow sigmas.
    #[serde(default, rename = "_class_name")]
    _class_name: IgnoredAny,
    #[serde(default, rename = "_diffusers_version")]
    _diffusers_version: IgnoredAny,
    #[serde(default, rename = "_name_or_path")]
    _name_or_path: IgnoredAny,
    #[serde(default, rename = "beta_start")]
    _beta_start: IgnoredAny,
    #[serde(default, rename = "beta_end")]
    _beta_end: IgnoredAny,
    #[serde(default, rename = "beta_schedule")]
    _beta_schedule: IgnoredAny,
    #[serde(default, rename = "trained_betas")]
    _trained_betas: IgnoredAny,
    #[serde(default, rename = "dynamic_thresholding_ratio")]
    _dynamic_thresholding_ratio: IgnoredAny,
    #[serde(default, rename = "sample_max_value")]
    _sample_max_value: IgnoredAny,
    #[serde(default, rename = "timestep_spacing")]
    _timestep_spacing: IgnoredAny,
    #[serde(default, rename = "steps_offset")]
    _steps_offset: IgnoredAny,
    #[serde(default, rename = "rescale_betas_zero_snr")]
    _rescale_betas_zero_snr: IgnoredAny,
    #[serde(default, rename = "time_shift_type")]
    _time_shift_type: IgnoredAny,
    #[serde(default, rename = "sigma_min")]
    _sigma_min: IgnoredAny,
    #[serde(default, rename = "sigma_max")]
    _sigma_max: IgnoredAny,
}

/// `prediction_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
enum Prediction {
    #[default]
    #[serde(rename = "epsilon")]
    Epsilon,
    #[serde(rename = "sample")]
    Sample,
    #[serde(rename = "v_prediction")]
    Velocity,
    /// noise - sample
    #[serde(rename = "flow_prediction")]
    Flow,
}

/// B(h), the weight of previous steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SolverType {
    /// h
    Bh1,
    /// e^h - 1; the class also maps the type names of other solvers to it.
    #[default]
    #[serde(alias = "midpoint", alias = "heun", alias = "logrho")]
    Bh2,
}

/// Sigma after the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    /// 0: no noise is left.
    #[default]
    Zero,
    /// Sigma of the last step, which then does nothing.
    SigmaMin,
}

impl Config {
    /// Rejects values that parse but make no sense, and those that are not for flow matching.
    pub fn check(&self) -> anyhow::Result<()> {
        check_train_timesteps(self.num_train_timesteps)?;
        check_shift("flow_shift", self.flow_shift)?;
        check_terminal(self.shift_terminal)?;
        ensure!(
            (1..=3).contains(&self.solver_order),
            "solver_order: must be 1, 2 or 3, got {}",
            self.solver_order
        );
        ensure!(
            self.prediction_type == Prediction::Flow,
            "prediction_type: only flow_prediction is supported with UniPCMultistepScheduler"
        );
        let off = "set it to false";
        refuse("use_flow_sigmas: false", !self.use_flow_sigmas, "set it to true")?;
        refuse("predict_x0: false", !self.predict_x0, "set it to true")?;
        // At a higher order the last step gives NaN, here and in diffusers.
        refuse("lower_order_final: false", !self.lower_order_final, "set it to true")?;
        refuse("thresholding", self.thresholding, off)?;
        refuse("solver_p", self.solver_p.is_some(), "set it to null")?;
        refuse("use_karras_sigmas", self.use_karras_sigmas, off)?;
        refuse("use_exponential_sigmas", self.use_exponential_sigmas, off)?;
        refuse("use_beta_sigmas", self.use_beta_sigmas, off)?;
        refuse("use_dynamic_shifting", self.use_dynamic_shifting, off)
    }
}

fn two() -> usize {
    2
}
