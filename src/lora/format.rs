//! How adapter files name their tensors. What a name begins with says whose it is; its end says which part.

use clap::ValueEnum;
use serde::Serialize;

/// The kinds of adapter files that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `transformer.<layer>.lora_A.weight`, or no prefix at all.
    Diffusers,
    /// `base_model.model.<layer>.lora_A.weight`, settings in `adapter_config.json` beside the file.
    #[value(skip)]
    Peft,
    /// `diffusion_model.<original name>.lora_A.weight`.
    #[value(name = "comfyui")]
    #[serde(rename = "comfyui")]
    ComfyUi,
    /// `lora_unet_<original name, dots as underscores>.lora_down.weight`: kohya's trainers and musubi-tuner.
    Kohya,
}

/// What names begin with, the longer before the shorter. Bare names are diffusers'.
const PREFIXES: [(&str, Format); 6] = [
    ("base_model.model.transformer.", Format::Peft),
    ("base_model.model.", Format::Peft),
    (super::diffusers::PREFIX, Format::Diffusers),
    ("model.diffusion_model.", Format::ComfyUi),
    (super::comfyui::PREFIX, Format::ComfyUi),
    (super::kohya::PREFIX, Format::Kohya),
];

/// Which part of an adapter a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// (rank, in)
    A,
    /// (out, rank)
    B,
    /// One number.
    Alpha,
}

/// What names end in. `default` is the adapter's name in PEFT, which `torch.save` of a model leaves in.
const ENDS: [(&str, Part); 9] = [
    (".lora_A.weight", Part::A),
    (".lora_B.weight", Part::B),
    (".lora_A.default.weight", Part::A),
    (".lora_B.default.weight", Part::B),
    (".lora_down.weight", Part::A),
    (".lora_up.weight", Part::B),
    (".lora.down.weight", Part::A),
    (".lora.up.weight", Part::B),
    (".alpha", Part::Alpha),
];

/// A tensor's name, taken apart: the layer is called as the format does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a> {
    pub format: Format,
    pub layer: &'a str,
    pub part: Part,
}

/// Takes a tensor's name apart.
///
/// # Errors
/// Why it is nothing that can be applied.
pub fn name(tensor: &str) -> Result<Name<'_>, &'static str> {
    if ["text_encoder", "lora_te"]
        .iter()
        .any(|start| tensor.starts_with(start))
    {
        return Err("is of a text encoder, whose adapters are not applied");
    }
    let part = ENDS
        .iter()
        .find_map(|(end, part)| Some((tensor.strip_suffix(end)?, *part)));
    let Some((layer, part)) = part else {
        return Err(foreign(tensor));
    };
    let known = PREFIXES
        .iter()
        .find_map(|(prefix, format)| Some((*format, layer.strip_prefix(prefix)?)));
    let (format, layer) = known.unwrap_or((Format::Diffusers, layer));
    if layer.is_empty() {
        return Err("names no layer");
    }
    Ok(Name { format, layer, part })
}

/// Other things that adapter files hold, by what their names have in them.
fn foreign(tensor: &str) -> &'static str {
    let kinds = [
        ("dora_scale", "is of DoRA, which is not supported"),
        ("magnitude_vector", "is of DoRA, which is not supported"),
        ("lokr_", "is of LoKr, which is not supported"),
        ("hada_", "is of LoHa, which is not supported"),
        ("lora_mid", "is of an adapter for a convolution, which is not supported"),
        (".lora_B.bias", "is a bias of an adapter, which is not supported"),
        (".diff", "is a difference of whole weights, which is not supported"),
    ];
    let known = kinds.iter().find(|(part, _)| tensor.contains(part));
    known.map_or("is no adapter in a known format", |(_, why)| why)
}
