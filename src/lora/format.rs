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
    /// `<original name>.lora_A.default.weight`: DiffSynth-Studio.
    #[value(skip)]
    Original,
    /// `diffusion_model.<original name>.lora_A.weight`.
    #[value(name = "comfyui")]
    #[serde(rename = "comfyui")]
    ComfyUi,
    /// `lora_unet_<original name, dots as underscores>.lora_down.weight`: kohya's trainers, musubi-tuner, LyCORIS.
    Kohya,
}

/// What names begin with, alone or several in a row; the longer before the shorter. Bare names are diffusers' or original.
const PREFIXES: [(&str, Format); 13] = [
    ("base_model.model.", Format::Peft),
    (super::diffusers::PREFIX, Format::Diffusers),
    (super::comfyui::PREFIX, Format::ComfyUi),
    ("diffusion.model.", Format::ComfyUi),
    ("model.", Format::Diffusers),
    ("pipe.", Format::Original),
    ("dit.", Format::Original),
    ("module.", Format::Diffusers),    // torch's DistributedDataParallel
    ("_orig_mod.", Format::Diffusers), // torch.compile
    (super::kohya::PREFIX, Format::Kohya),
    ("lora_transformer_", Format::Kohya),
    ("lora_dit_", Format::Kohya),
    ("lycoris_", Format::Kohya),
];

/// Which part of an adapter a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// (rank, in)
    A,
    /// (out, rank)
    B,
    /// (out): what B adds besides, scaled as B A is.
    BBias,
    /// One number.
    Alpha,
    /// Of the layer's weight: what is added to it. It has no alpha.
    Weight,
    /// The same of its bias.
    Bias,
}

/// A tensor's name, taken apart: the layer is called as the format does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub format: Format,
    pub layer: String,
    pub part: Part,
}

/// Takes a tensor's name apart.
///
/// # Errors
/// Why it is nothing that can be applied.
pub fn name(tensor: &str) -> Result<Name, &'static str> {
    let (format, rest) = unprefixed(tensor);
    if ["text_encoder", "lora_te", "lycoris_te", "text_model"]
        .iter()
        .any(|start| tensor.starts_with(start) || rest.starts_with(start))
    {
        return Err("is of a text encoder, whose adapters are not applied");
    }
    let segments: Vec<&str> = rest.split('.').collect();
    let Some((layer, part)) = part(&segments) else {
        return Err(foreign(tensor));
    };
    // PEFT's name of an adapter, which some programs leave in front of its parts.
    let layer: Vec<&str> = layer.iter().copied().filter(|segment| *segment != "default").collect();
    let layer = match (segments.last(), layer.join(".")) {
        // lightx2v's word for the table that modulates a block.
        (Some(&"diff_m"), layer) if format == Format::Kohya => format!("{layer}_modulation"),
        (Some(&"diff_m"), layer) => format!("{layer}.modulation"),
        (_, layer) => layer,
    };
    if layer.is_empty() {
        return Err("names no layer");
    }
    Ok(Name { format, layer, part })
}

/// The format that a name's prefixes tell, and what stands behind all of them.
fn unprefixed(tensor: &str) -> (Format, &str) {
    let (mut told, mut rest) = (Format::Diffusers, tensor);
    while let Some((format, behind)) = PREFIXES
        .iter()
        .find_map(|(prefix, format)| Some((*format, rest.strip_prefix(prefix)?)))
    {
        // The most particular one counts: `base_model.model.` may stand before or behind `transformer.`.
        told = if told == Format::Peft { told } else { told.max(format) };
        told = if format == Format::Peft { format } else { told };
        rest = behind;
    }
    (told, rest)
}

/// Tells a part by how the name ends; before it is the layer.
fn part<'a, 'b>(segments: &'a [&'b str]) -> Option<(&'a [&'b str], Part)> {
    Some(match segments {
        [layer @ .., "lora_A" | "lora_down", "weight"] | [layer @ .., "lora", "down", "weight"] => (layer, Part::A),
        [layer @ .., "lora_B" | "lora_up", "weight"] | [layer @ .., "lora", "up", "weight"] => (layer, Part::B),
        // Between them, the adapter's name in PEFT.
        [layer @ .., "lora_A", _, "weight"] | [layer @ .., "lora_A"] => (layer, Part::A),
        [layer @ .., "lora_B", _, "weight"] | [layer @ .., "lora_B"] => (layer, Part::B),
        [layer @ .., "lora_B" | "lora_up", "bias"] | [layer @ .., "lora_B", _, "bias"] => (layer, Part::BBias),
        [layer @ .., "alpha"] => (layer, Part::Alpha),
        [layer @ .., "diff" | "diff_m" | "w_norm"] => (layer, Part::Weight),
        [layer @ .., "diff_b" | "b_norm"] => (layer, Part::Bias),
        _ => return None,
    })
}

/// Other things that adapter files hold, by what their names have in them.
fn foreign(tensor: &str) -> &'static str {
    let kinds = [
        ("dora_scale", "is of DoRA, which is not supported"),
        ("magnitude_vector", "is of DoRA, which is not supported"),
        ("lokr_", "is of LoKr, which is not supported"),
        ("hada_", "is of LoHa, which is not supported"),
        ("oft_", "is of OFT, which is not supported"),
        (
            "lora_mid",
            "is of a convolution's adapter in three parts, which is not supported",
        ),
        (
            "lora_embedding_",
            "is of an embedding's adapter, which is not supported",
        ),
        ("lora_A.bias", "is a bias of lora_A, which no program applies"),
        ("set_weight", "replaces a whole weight, which is not supported"),
        ("reshape_weight", "gives a weight another shape, which is not supported"),
        (
            "modules_to_save",
            "is a whole weight (PEFT's modules_to_save), which is not supported",
        ),
        (
            "base_layer",
            "is a weight of the model itself, under an adapter; save the adapter alone",
        ),
    ];
    let known = kinds.iter().find(|(part, _)| tensor.contains(part));
    known.map_or("is no adapter in a known format", |(_, why)| why)
}
