//! Timesteps and their weights: `--timestep_sampling` and `--weighting_scheme`.

use super::{DEFAULT, Migration};

impl Migration<'_> {
    pub(super) fn diffusion(&mut self) {
        let flag = self.flags.take("timestep_sampling");
        let name = flag
            .as_ref()
            .and_then(|flag| flag.values.first())
            .map_or("sigma", String::as_str);
        let from = if flag.is_some() {
            format!("--timestep_sampling {name}")
        } else {
            DEFAULT.into()
        };
        match name {
            "uniform" => {
                self.set("diffusion", "timesteps", "uniform", &from);
                self.set("diffusion", "shift", 1.0, &from);
            }
            // sigmoid(scale * normal) is a logit-normal draw.
            "sigmoid" | "shift" => {
                self.set("diffusion", "timesteps", "logit_normal", &from);
                self.number::<f64>("sigmoid_scale", "diffusion", "logit_std", None);
                if name == "shift" {
                    self.number::<f64>("discrete_flow_shift", "diffusion", "shift", Some(1.0));
                } else {
                    self.set("diffusion", "shift", 1.0, &from);
                }
            }
            "sigma" => self.number::<f64>("discrete_flow_shift", "diffusion", "shift", Some(1.0)),
            _ => {
                if let Some(flag) = &flag {
                    self.remark(
                        flag,
                        "vtrain has no such distribution: write diffusion.timesteps and diffusion.shift",
                    );
                }
            }
        }
        for name in ["discrete_flow_shift", "sigmoid_scale"] {
            if let Some(flag) = self.flags.take(name) {
                self.remark(&flag, "is not read with this --timestep_sampling");
            }
        }
        self.weighting(name == "sigma");
    }

    /// Converts `--weighting_scheme`: a distribution with `sigma`, a weighting otherwise.
    fn weighting(&mut self, draws: bool) {
        let flag = self.flags.take("weighting_scheme");
        let name = flag
            .as_ref()
            .and_then(|flag| flag.values.first())
            .map_or("none", String::as_str);
        match (name, &flag) {
            ("none", _) => {
                let from = if flag.is_some() { "--weighting_scheme" } else { DEFAULT };
                self.set("diffusion", "weighting", "none", from);
            }
            ("sigma_sqrt" | "cosmap", _) => self.set("diffusion", "weighting", name, "--weighting_scheme"),
            ("logit_normal" | "mode", _) if draws => self.set("diffusion", "timesteps", name, "--weighting_scheme"),
            ("logit_normal" | "mode", Some(flag)) => {
                self.remark(flag, "is read with --timestep_sampling sigma only");
            }
            (_, Some(flag)) => self
                .flags
                .wrong(flag, "is one of none, logit_normal, mode, sigma_sqrt, cosmap"),
            (_, None) => {}
        }
        for (flag, key, reader) in [
            ("logit_mean", "logit_mean", "logit_normal"),
            ("logit_std", "logit_std", "logit_normal"),
            ("mode_scale", "mode_scale", "mode"),
        ] {
            if draws && name == reader {
                self.number::<f64>(flag, "diffusion", key, None);
            } else if let Some(flag) = self.flags.take(flag) {
                self.remark(&flag, &format!("is read with --weighting_scheme {reader} only"));
            }
        }
    }
}
