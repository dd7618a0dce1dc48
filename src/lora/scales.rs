//! Scales of a file's adapters: alpha, from wherever it is stored.

use anyhow::Context;
use candle_core::Tensor;

use super::adapters::Adapter;
use super::bytes::Metadata;
use super::format::{Format, LayerName};
use super::settings::{self, PeftSettings};
use super::{comfyui, genmo, scale};

/// PEFT's settings next to its adapter file.
pub const CONFIG: &str = "adapter_config.json";

/// Scales given by a file's metadata.
#[derive(Debug)]
pub struct AlphaSource {
    /// PEFT's settings, which apply to the file's tensors.
    settings: PeftSettings,
    /// Settings before vtrain wrote a format that does not support them.
    before: Option<PeftSettings>,
    /// Kind of multiplication of B by the scale of `before`, if any.
    folded: Option<String>,
    /// Alphas of genmo's fine-tuner.
    genmo: Option<genmo::Alphas>,
    format: Format,
    /// True if some alpha is missing, although the format supports it.
    pub guessed: bool,
}

impl AlphaSource {
    /// Removes the settings from a header or, in PEFT's format, reads them from its file.
    ///
    /// # Errors
    /// Fails for invalid settings.
    pub fn take(about: &mut Metadata, format: Format, config: Option<&str>) -> anyhow::Result<Self> {
        about.remove("format");
        let before = about.remove(comfyui::SETTINGS);
        let folded = about.remove(comfyui::FOLDED);
        let own = about.remove(settings::KEY).map(|text| (settings::KEY, text));
        let own = own.or_else(|| Some(("lora_config", about.remove("lora_config")?)));
        let own = own.or_else(|| Some((CONFIG, config.filter(|_| format == Format::Peft)?.to_string())));
        let kwargs = about.get(genmo::KWARGS).map(|text| genmo::Alphas::parse(text));
        let genmo = kwargs.transpose().context(genmo::KWARGS)?.flatten();
        if genmo.is_some() {
            about.remove(genmo::KWARGS);
        }
        let settings = match own {
            Some((place, text)) => PeftSettings::parse(&text).with_context(|| place)?,
            None => PeftSettings::default(),
        };
        let before = before
            .map(|text| PeftSettings::parse(&text).context(comfyui::SETTINGS))
            .transpose()?;
        Ok(Self {
            settings,
            before,
            folded,
            genmo,
            format,
            guessed: false,
        })
    }

    /// Returns true for a header of genmo's fine-tuner.
    pub fn are_of_genmo(&self) -> bool {
        self.genmo.is_some()
    }

    /// Returns the rank that a layer's adapter had before vtrain wrote the file, if it says so.
    pub fn rank(&self, layer: &str) -> Option<usize> {
        self.before.as_ref()?.rank(layer)
    }

    /// Returns a layer's adapter; `alpha` is the layer's own tensor, and the rank that it is for.
    ///
    /// # Errors
    /// Fails if a computation fails.
    pub fn apply(
        &mut self,
        called: LayerName,
        a: Tensor,
        b: Tensor,
        (alpha, rank_in_file): (Option<f64>, usize),
    ) -> anyhow::Result<Adapter> {
        let rank = a.dim(0)?;
        let of_header = || self.genmo.as_ref()?.alpha(called.in_file);
        let alpha = alpha.or_else(of_header);
        if let Some(before) = &self.before
            && let Some(was) = before.alpha(&[called.layer])
        {
            let factor = scale(was, rank, before.use_rslora);
            let b_before = match alpha {
                // The tensor is f32; the settings are its exact source.
                Some(alpha) if (alpha / rank_in_file as f64 - factor).abs() <= 1e-6 * factor.abs() => Some(b.clone()),
                None if factor != 0.0 => match self.folded.as_deref() {
                    Some(comfyui::WIDENED) => Some(comfyui::unfold(&b, factor)?.to_dtype(a.dtype())?),
                    Some(_) => Some(comfyui::unfold(&b, factor)?),
                    None => None,
                },
                _ => None,
            };
            if let Some(b) = b_before {
                return Ok(Adapter {
                    a,
                    b,
                    alpha: was,
                    use_rslora: before.use_rslora,
                });
            }
        }
        let written = alpha.or_else(|| self.settings.alpha(&[called.in_file, called.layer]));
        self.guessed |= written.is_none() && self.format == Format::Peft;
        let use_rslora = alpha.is_none() && self.settings.use_rslora;
        let alpha = match written {
            Some(alpha) if rank == rank_in_file => alpha,
            Some(alpha) => alpha * scale(1.0, rank_in_file, use_rslora) / scale(1.0, rank, use_rslora),
            None if use_rslora => rank_in_file as f64 * scale(1.0, rank_in_file, true) / scale(1.0, rank, true),
            None => rank as f64,
        };
        Ok(Adapter {
            a,
            b,
            alpha,
            use_rslora,
        })
    }
}
