//! File names in repositories of diffusers and PEFT: weights, their shards and variants, adapters. A folder on disk has
//! the same layout as a repository.
//!
//! Weights: `STEM.safetensors`, in shards `STEM-00001-of-00002.safetensors` with `STEM.safetensors.index.json`. A
//! variant: `STEM.fp16.safetensors`, `STEM.fp16-00001-of-00002.safetensors` and `STEM.safetensors.index.fp16.json`;
//! from older versions `STEM-00001-of-00002.fp16.safetensors` and `STEM.safetensors.fp16.index.json`. Facts:
//! `variant_compatible_siblings` and `_add_variant` of diffusers.

use std::collections::BTreeSet;

use anyhow::{bail, ensure};

/// Adapter file names of diffusers and PEFT, diffusers' first.
pub const ADAPTERS: [&str; 2] = ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"];

const SAFETENSORS: &str = ".safetensors";

/// Names that a message lists.
const SHOWN: usize = 10;

/// A file of weights, or an index of several, parsed from its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightFile<'a> {
    /// `fp16`; None for the usual files.
    pub variant: Option<&'a str>,
    /// Role of the file.
    pub kind: Kind,
}

/// Role of a file among a model's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All weights.
    Whole,
    /// One of several files.
    Shard,
    /// Map from tensors to files.
    Index,
}

impl<'a> WeightFile<'a> {
    /// Parses a file name; None if it is not a safetensors file.
    pub fn of(name: &'a str) -> Option<Self> {
        if let Some(rest) = name.strip_suffix(".json") {
            // `.safetensors.index`, with a variant after it, within it or before it
            let (stem, behind) = rest.split_once(SAFETENSORS)?;
            let variant = match behind.split('.').collect::<Vec<_>>()[..] {
                ["", "index"] => stem.split_once('.').map(|(_, variant)| variant),
                ["", "index", variant] | ["", variant, "index"] => Some(variant),
                _ => return None,
            };
            return Some(Self {
                variant,
                kind: Kind::Index,
            });
        }
        let stem = name.strip_suffix(SAFETENSORS)?;
        let (stem, variant) = match stem.split_once('.') {
            Some((stem, variant)) => (stem, Some(variant)),
            None => (stem, None),
        };
        let numbered = [Some(stem), variant]
            .into_iter()
            .flatten()
            .any(|part| unnumbered(part) != part);
        Some(Self {
            variant: variant.map(unnumbered),
            kind: if numbered { Kind::Shard } else { Kind::Whole },
        })
    }
}

/// Removes `-00001-of-00002` from a name.
fn unnumbered(name: &str) -> &str {
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = name.rsplitn(4, '-');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(all), Some("of"), Some(number), Some(name)) if digits(all) && digits(number) => name,
        _ => name,
    }
}

/// Selects the variant to read among the files of a folder: the requested one if it exists, else the usual files, else
/// the only variant.
///
/// # Errors
/// Fails for several variants without usual files, none of them requested.
pub fn variant<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
    wanted: Option<&str>,
) -> anyhow::Result<Option<&'a str>> {
    let there: BTreeSet<Option<&str>> = names.filter_map(|name| Some(WeightFile::of(name)?.variant)).collect();
    if let Some(wanted) = there.iter().find(|variant| variant.is_some() && **variant == wanted) {
        return Ok(*wanted);
    }
    let variants: Vec<&str> = there.iter().flatten().copied().collect();
    match variants.as_slice() {
        _ if there.contains(&None) => Ok(None),
        [] => Ok(None),
        [only] if wanted.is_none() => Ok(Some(*only)),
        _ => match wanted {
            None => bail!(
                "the weights exist in several variants only; choose one with model.variant (sample: \
                 --variant): {}",
                variants.join(", ")
            ),
            Some(wanted) => bail!(
                "the weights exist neither as the variant {wanted} nor without one, but as {}",
                variants.join(", ")
            ),
        },
    }
}

/// Returns the adapter among the files of a folder or repository: the one that diffusers or PEFT would load, or the
/// only one.
///
/// # Errors
/// Fails without a file, or with several candidates, which are named.
pub fn adapter(names: &[String]) -> anyhow::Result<&str> {
    let files: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| name.ends_with(SAFETENSORS))
        .collect();
    let usual: Vec<&str> = ADAPTERS.into_iter().filter(|name| files.contains(name)).collect();
    match (usual.as_slice(), files.as_slice()) {
        ([usual], _) => Ok(usual),
        ([], [only]) => Ok(only),
        ([], []) => {
            let pickles: Vec<&String> = names.iter().filter(|name| is_pickle(name)).collect();
            ensure!(
                pickles.is_empty(),
                "has no safetensors file, only {}, which can run code and is never read",
                shown(&pickles)
            );
            bail!("has no safetensors file")
        }
        _ => bail!("has several files; append the name of one: {}", shown(&files)),
    }
}

/// Checks for the extensions of `torch.save`.
pub fn is_pickle(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end))
}

fn shown(names: &[impl AsRef<str>]) -> String {
    let names: Vec<&str> = names.iter().take(SHOWN).map(AsRef::as_ref).collect();
    names.join(", ")
}
