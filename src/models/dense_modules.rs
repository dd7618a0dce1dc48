//! Modules of a transformer that stay dense where others are stored in few bits.

use crate::nn::storage::quantize::Quantization;

/// Modules that diffusers' layerwise casting skips in every model.
const SKIPPED: [&str; 5] = ["pos_embed", "patch_embed", "norm", "^proj_in.", "^proj_out."];

/// Names of modules, as parts of paths, or their beginnings behind `^`; facts: the classes of diffusers.
#[derive(Debug, Clone, Copy, Default)]
pub struct DenseModules {
    /// Modules that are never stored in few bits: `_keep_in_fp32_modules`.
    pub keep_in_fp32: &'static [&'static str],
    /// Modules that plain fp8 leaves as they are besides those above and those of all models:
    /// `_skip_layerwise_casting_patterns`.
    pub skip_layerwise_casting: &'static [&'static str],
}

impl DenseModules {
    /// None but those that the layerwise casting skips in every model.
    pub const NONE: Self = Self {
        keep_in_fp32: &[],
        skip_layerwise_casting: &[],
    };

    /// Returns parts of the paths of layers that stay dense where others get this form.
    pub fn of(&self, form: Option<Quantization>) -> Vec<&'static str> {
        match form {
            Some(Quantization::Fp8) => [&SKIPPED, self.keep_in_fp32, self.skip_layerwise_casting].concat(),
            _ => self.keep_in_fp32.to_vec(),
        }
    }
}
