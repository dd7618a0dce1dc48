//! Formats of adapter files, by their tensors' names: the prefix decides the format, the suffix the part.

use clap::ValueEnum;
use serde::Serialize;

/// Formats of adapter files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `transformer.<layer>.lora_A.weight`, or no prefix at all.
    Diffusers,
    /// `base_model.model.<layer>.lora_A.weight`, with settings in `adapter_config.json`.
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
    /// `<original name>.lora_A`, with ranks and alphas in the header: genmo's fine-tuner of Mochi 1.
    Genmo,
}

/// Prefix of layers in files of diffusers.
pub const DIFFUSERS_PREFIX: &str = "transformer.";

/// Prefix of layers in files for ComfyUI.
pub const COMFYUI_PREFIX: &str = "diffusion_model.";

/// Prefix of layers in files of kohya's trainers.
pub const KOHYA_PREFIX: &str = "lora_unet_";

/// Prefixes of names, single or several in a row; longer ones before shorter ones. Names without one are diffusers' or
/// original.
const PREFIXES: [(&str, Format); 13] = [
    ("base_model.model.", Format::Peft),
    (DIFFUSERS_PREFIX, Format::Diffusers),
    (COMFYUI_PREFIX, Format::ComfyUi),
    ("diffusion.model.", Format::ComfyUi),
    ("model.", Format::Diffusers),
    ("pipe.", Format::Original),
    ("dit.", Format::Original),
    ("module.", Format::Diffusers),    // torch's DistributedDataParallel
    ("_orig_mod.", Format::Diffusers), // torch.compile
    (KOHYA_PREFIX, Format::Kohya),
    ("lora_transformer_", Format::Kohya),
    ("lora_dit_", Format::Kohya),
    ("lycoris_", Format::Kohya),
];

/// Parts of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Matrix A (rank, in)
    A,
    /// Matrix B (out, rank)
    B,
    /// Bias of B (out), scaled like B A.
    BBias,
    /// Alpha, a single number.
    Alpha,
    /// Difference of the layer's weight, without an alpha.
    Weight,
    /// Difference of the layer's bias.
    Bias,
}

/// A tensor's name, parsed; the layer is spelled as in the format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Format that the name is written in.
    pub format: Format,
    /// Name of the layer, as the format spells it.
    pub layer: String,
    /// Part of the adapter.
    pub part: Part,
}

/// Parses a tensor's name.
///
/// # Errors
/// Explains why it is nothing that can be applied.
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
    // PEFT's name of an adapter, which some programs leave before its parts.
    let layer: Vec<&str> = layer.iter().copied().filter(|segment| *segment != "default").collect();
    let layer = match (segments.last(), layer.join(".")) {
        // lightx2v's name for the modulation table of a block.
        (Some(&"diff_m"), layer) if format == Format::Kohya => format!("{layer}_modulation"),
        (Some(&"diff_m"), layer) => format!("{layer}.modulation"),
        (_, layer) => layer,
    };
    if layer.is_empty() {
        return Err("names no layer");
    }
    Ok(Name { format, layer, part })
}

/// Returns the format indicated by a name's prefixes, and the rest of the name.
fn unprefixed(tensor: &str) -> (Format, &str) {
    let (mut told, mut rest) = (Format::Diffusers, tensor);
    while let Some((format, behind)) = PREFIXES
        .iter()
        .find_map(|(prefix, format)| Some((*format, rest.strip_prefix(prefix)?)))
    {
        // The most specific one counts: `base_model.model.` may precede or follow `transformer.`.
        told = if told == Format::Peft { told } else { told.max(format) };
        told = if format == Format::Peft { format } else { told };
        rest = behind;
    }
    (told, rest)
}

/// Parses the part at the end of a name; the rest is the layer.
fn part<'a, 'b>(segments: &'a [&'b str]) -> Option<(&'a [&'b str], Part)> {
    Some(match segments {
        [layer @ .., "lora_A" | "lora_down", "weight"] | [layer @ .., "lora", "down", "weight"] => (layer, Part::A),
        [layer @ .., "lora_B" | "lora_up", "weight"] | [layer @ .., "lora", "up", "weight"] => (layer, Part::B),
        // The adapter's name in PEFT is in the middle.
        [layer @ .., "lora_A", _, "weight"] | [layer @ .., "lora_A"] => (layer, Part::A),
        [layer @ .., "lora_B", _, "weight"] | [layer @ .., "lora_B"] => (layer, Part::B),
        [layer @ .., "lora_B" | "lora_up", "bias"] | [layer @ .., "lora_B", _, "bias"] => (layer, Part::BBias),
        [layer @ .., "alpha"] => (layer, Part::Alpha),
        [layer @ .., "diff" | "diff_m" | "w_norm"] => (layer, Part::Weight),
        [layer @ .., "diff_b" | "b_norm"] => (layer, Part::Bias),
        _ => return None,
    })
}

/// Recognises other contents of adapter files by substrings of their names.
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
    known.map_or("is not an adapter in a known format", |(_, why)| why)
}

/// Names of one layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerName<'a> {
    /// Name in diffusers.
    pub layer: &'a str,
    /// Name in the file.
    pub in_file: &'a str,
    /// True for a parameter outside of layers, which has no `weight` of its own.
    pub table: bool,
}
