//! What the adapters of a file are scaled by: alpha, from where it is written.

use anyhow::Context;
use candle_core::Tensor;

use super::adapters::Adapter;
use super::bytes::About;
use super::format::Format;
use super::parts::Called;
use super::settings::{self, Settings};
use super::{comfyui, scale};

/// PEFT's settings beside its adapter file.
pub const CONFIG: &str = "adapter_config.json";

/// What a file says of its scales besides tensors.
#[derive(Debug)]
pub struct Scales {
    /// PEFT's, which hold for what is in the file.
    settings: Settings,
    /// What they were before vtrain wrote a format that has no place for them.
    before: Option<Settings>,
    /// How B was multiplied by the scale of `before`, where it was.
    folded: Option<String>,
    format: Format,
    /// Whether some alpha is written nowhere, although the format has a place for it.
    pub guessed: bool,
}

impl Scales {
    /// Takes the settings out of a header, or, in PEFT's format, from its file.
    ///
    /// # Errors
    /// Settings that are none.
    pub fn take(about: &mut About, format: Format, config: Option<&str>) -> anyhow::Result<Self> {
        about.remove("format");
        let before = about.remove(comfyui::SETTINGS);
        let folded = about.remove(comfyui::FOLDED);
        let own = about.remove(settings::KEY).map(|text| (settings::KEY, text));
        let own = own.or_else(|| Some(("lora_config", about.remove("lora_config")?)));
        let own = own.or_else(|| Some((CONFIG, config.filter(|_| format == Format::Peft)?.to_string())));
        let settings = match own {
            Some((place, text)) => Settings::parse(&text).with_context(|| place)?,
            None => Settings::default(),
        };
        let before = before
            .map(|text| Settings::parse(&text).context(comfyui::SETTINGS))
            .transpose()?;
        Ok(Self {
            settings,
            before,
            folded,
            format,
            guessed: false,
        })
    }

    /// A layer's adapter; `alpha` is the layer's own tensor.
    ///
    /// # Errors
    /// Arithmetic that fails.
    pub fn apply(&mut self, called: Called, a: Tensor, b: Tensor, alpha: Option<f64>) -> anyhow::Result<Adapter> {
        let rank = a.dim(0)?;
        if let Some(before) = &self.before
            && let Some(was) = before.alpha(&[called.layer])
        {
            let factor = scale(was, rank, before.use_rslora);
            let b_before = match alpha {
                // The tensor is f32, and the settings are what it was made from.
                Some(alpha) if (alpha / rank as f64 - factor).abs() <= 1e-6 * factor.abs() => Some(b.clone()),
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
        let written = alpha.or_else(|| self.settings.alpha(&[called.there, called.layer]));
        self.guessed |= written.is_none() && self.format == Format::Peft;
        Ok(Adapter {
            a,
            b,
            use_rslora: alpha.is_none() && self.settings.use_rslora,
            alpha: written.unwrap_or(rank as f64),
        })
    }
}
