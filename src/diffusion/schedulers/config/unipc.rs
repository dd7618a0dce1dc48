//! Configuration of `UniPCMultistepScheduler` for flow matching.

use serde::{Deserialize, Serialize};

use super::{UNSUPPORTED, flow_rules};
use crate::diffusers_config;

/// Settings, with the defaults of the class. Its noise by betas is rejected: `use_flow_sigmas` must be on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Timestep = sigma times this.
    pub num_train_timesteps: usize,
    /// Steps that a step looks back to, itself included: 1 to 3.
    pub solver_order: usize,
    prediction_type: String,
    /// Form of the solver's B(h).
    pub solver_type: SolverType,
    /// Steps whose result the next one does not correct.
    pub disable_corrector: Vec<usize>,
    use_flow_sigmas: bool,
    /// sigma <- shift sigma / (1 + (shift - 1) sigma)
    pub flow_shift: f64,
    /// Sigma after the last step.
    pub final_sigmas_type: FinalSigma,
    /// Last sigma, by stretching.
    pub shift_terminal: Option<f64>,
}

/// B(h), the weight of previous steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    /// 0: no noise is left.
    #[default]
    Zero,
    /// Sigma of the last step, which then does nothing.
    SigmaMin,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            solver_order: 2,
            prediction_type: "epsilon".into(),
            solver_type: SolverType::default(),
            disable_corrector: Vec::new(),
            use_flow_sigmas: false,
            flow_shift: 1.0,
            final_sigmas_type: FinalSigma::default(),
            shift_terminal: None,
        }
    }
}

impl Config {
    /// Settings of flow matching with the defaults of the class: those that `from_config` makes of another scheduler.
    pub fn of_flow(num_train_timesteps: usize, flow_shift: f64, shift_terminal: Option<f64>) -> Self {
        Self {
            num_train_timesteps,
            prediction_type: "flow_prediction".into(),
            use_flow_sigmas: true,
            flow_shift,
            shift_terminal,
            ..Self::default()
        }
    }
}

impl diffusers_config::Config for Config {
    const CLASS: &str = "UniPCMultistepScheduler";
    /// Unused with flow sigmas.
    const UNUSED: &[&str] = &[
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "timestep_spacing",
        "steps_offset",
        "rescale_betas_zero_snr",
        "time_shift_type",
        "sigma_min",
        "sigma_max",
    ];
    const FIXED: &[(&str, &str, &str)] = &[
        ("predict_x0", "true", UNSUPPORTED),
        // At a higher order the last step gives NaN, here and in diffusers.
        ("lower_order_final", "true", UNSUPPORTED),
        ("thresholding", "false", UNSUPPORTED),
        ("solver_p", "null", UNSUPPORTED),
        ("use_karras_sigmas", "false", UNSUPPORTED),
        ("use_exponential_sigmas", "false", UNSUPPORTED),
        ("use_beta_sigmas", "false", UNSUPPORTED),
        ("use_dynamic_shifting", "false", UNSUPPORTED),
    ];

    fn check(&self) -> Vec<String> {
        flow_rules(self, ("flow_shift", self.flow_shift), self.shift_terminal)
            .between(&["solver_order"], 1..=3)
            .only("prediction_type", "flow_prediction", UNSUPPORTED)
            .only("use_flow_sigmas", true, UNSUPPORTED)
            .wrong()
    }
}
