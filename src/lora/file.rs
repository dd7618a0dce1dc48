//! Reads an adapter file of any format.
//!
//! The tensors' names determine the format and the family. Alpha is read from a tensor of the layer, from PEFT's
//! settings in the header, or from `adapter_config.json` next to the file; otherwise it is the rank.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::adapters::{Adapter, AdapterFile, Deltas};
use super::bytes::Metadata;
use super::format::{self, Format, LayerName};
use super::names::{self, Located, Names};
use super::parts::{self, Parts};
use super::scales::{AlphaSource, CONFIG};
use super::{comfyui, diffusers, genmo, kohya, split};
use crate::hub::layout;
use crate::magic;

/// Upper limit for settings.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Upper limit for an adapter file; a model's weights are larger.
const MAX_BYTES: u64 = 8 << 30;

/// Contents of an adapter file.
#[derive(Debug)]
pub struct ParsedAdapter {
    /// Format of the file's names.
    pub format: Format,
    /// Families of these layers. Several if the names fit several, none if they fit none.
    pub families: Vec<&'static Names>,
    /// Adapters by the layer's name in diffusers.
    pub layers: BTreeMap<String, Adapter>,
    /// Differences of whole parameters.
    pub deltas: Deltas,
    /// Tensors and layers that cannot be applied.
    pub strange: Vec<UnsupportedTensor>,
    /// True if some alpha is missing, although files of this format have it.
    pub alpha_is_a_guess: bool,
    /// Other metadata of the header: trigger words, training facts.
    pub about: Metadata,
}

/// A tensor or layer of a file that cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct UnsupportedTensor {
    /// Name in the file.
    pub name: String,
    /// Reason why it cannot be applied.
    pub why: String,
}

/// Reads an adapter file, or the one in a folder of diffusers, PEFT or vtrain. `families` are the candidates; without
/// any, only names of diffusers are understood.
///
/// # Errors
/// Same as [`from_bytes`], with the file's name; also for a folder without an adapter, or with several.
pub fn read(path: &Path, families: &[&'static Names]) -> anyhow::Result<ParsedAdapter> {
    let path = &within(path)?;
    let shown = || path.display().to_string();
    let size = std::fs::metadata(path).with_context(shown)?.len();
    magic::refuse(path).with_context(shown)?;
    ensure!(
        size <= MAX_BYTES,
        "{}: {size} bytes are too many for an adapter; is it the model itself?",
        path.display()
    );
    let bytes = std::fs::read(path).with_context(shown)?;
    let config = config_beside(path)?;
    let read = from_bytes(&bytes, config.as_deref(), families).with_context(shown)?;
    if read.alpha_is_a_guess {
        log::warn!(
            "{}: its strength is a guess: PEFT writes alpha into {CONFIG}, which {}; alpha is taken to be \
             the rank",
            path.display(),
            match config {
                Some(_) => "does not contain it",
                None => "is not next to it",
            }
        );
    }
    Ok(read)
}

/// Returns the adapter file: the path itself, or the one in that folder.
fn within(path: &Path) -> anyhow::Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let shown = || path.display().to_string();
    let entries = std::fs::read_dir(path).with_context(shown)?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let name = layout::adapter(&names).with_context(|| format!("the folder {}", path.display()))?;
    Ok(path.join(name))
}

/// Returns PEFT's settings next to an adapter file.
fn config_beside(path: &Path) -> anyhow::Result<Option<String>> {
    let config = path.with_file_name(CONFIG);
    let Ok(found) = std::fs::metadata(&config) else {
        return Ok(None);
    };
    let shown = || config.display().to_string();
    ensure!(
        found.len() <= MAX_CONFIG_BYTES,
        "{}: {} bytes are too many for settings",
        config.display(),
        found.len()
    );
    Ok(Some(std::fs::read_to_string(&config).with_context(shown)?))
}

/// Parses an adapter file; `config` is the text of PEFT's `adapter_config.json`, used for PEFT's format.
///
/// # Errors
/// Fails for other files, without adapters, for several formats at once, and for invalid settings. Single tensors that
/// cannot be applied are not an error here: see [`ParsedAdapter::check`].
pub fn from_bytes(bytes: &[u8], config: Option<&str>, families: &[&'static Names]) -> anyhow::Result<ParsedAdapter> {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).context("not a readable safetensors file")?;
    let tensors = safetensors::SafeTensors::deserialize(bytes).context("not a readable safetensors file")?;
    let mut about: Metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let mut strange = Vec::new();
    let mut formats = BTreeSet::new();
    let mut found: BTreeMap<String, Parts> = BTreeMap::new();
    for (name, view) in tensors.tensors().into_iter().collect::<BTreeMap<_, _>>() {
        match format::name(&name) {
            Ok(known) => {
                formats.insert(known.format);
                match parts::load(&view) {
                    Ok(tensor) => found.entry(known.layer).or_default().put(known.part, tensor),
                    Err(error) => strange.push(UnsupportedTensor {
                        name,
                        why: format!("cannot be read: {error}"),
                    }),
                }
            }
            Err(why) => strange.push(UnsupportedTensor { name, why: why.into() }),
        }
    }
    let format = the_only(&formats, &strange)?;
    let mut scales = AlphaSource::take(&mut about, format, config)?;
    let (families, found) = translate(format, found, families, &scales, &mut strange);
    let format = match format {
        Format::Diffusers if found.original && scales.are_of_genmo() => Format::Genmo,
        Format::Diffusers if found.original => Format::Original,
        format => format,
    };
    let (mut layers, mut deltas) = (BTreeMap::new(), Deltas::new());
    for (layer, there, parts) in found.layers {
        let called = LayerName {
            layer: &layer,
            in_file: &there,
            table: families.first().is_some_and(|family| family.is_table(&layer)),
        };
        match parts.take(called, &mut scales) {
            Ok((adapter, more))
                if differ(&layer, adapter.as_ref(), &layers)? || more.keys().any(|name| deltas.contains_key(name)) =>
            {
                strange.push(UnsupportedTensor {
                    name: there,
                    why: format!("is {layer}, which is there twice"),
                });
            }
            Ok((adapter, more)) => {
                deltas.extend(more);
                if let Some(adapter) = adapter {
                    layers.entry(layer).or_insert(adapter);
                }
            }
            Err(why) => strange.push(UnsupportedTensor {
                name: layer,
                why: why.to_string(),
            }),
        }
    }
    Ok(ParsedAdapter {
        format,
        families,
        layers,
        deltas,
        strange,
        alpha_is_a_guess: scales.guessed,
        about,
    })
}

/// Returns the format of all tensors.
fn the_only(formats: &BTreeSet<Format>, strange: &[UnsupportedTensor]) -> anyhow::Result<Format> {
    let formats: Vec<Format> = formats.iter().copied().collect();
    match formats.as_slice() {
        [format] => Ok(*format),
        [] => match strange.first() {
            Some(first) => bail!(
                "there are no adapters in this file: the tensor {} {}",
                first.name,
                first.why
            ),
            None => bail!("there are no adapters in this file"),
        },
        many => bail!("the tensors are named in several formats at once: {many:?}"),
    }
}

impl ParsedAdapter {
    /// Checks that everything in the file can be applied.
    ///
    /// # Errors
    /// Names the first thing that cannot, and the number of others.
    pub fn check(&self) -> anyhow::Result<()> {
        if let Some(UnsupportedTensor { name, why }) = self.strange.first() {
            let others = match self.strange.len() - 1 {
                0 => String::new(),
                others => format!(", and {others} more like it; see vtrain lora inspect"),
            };
            bail!("{name} {why}{others}");
        }
        ensure!(
            !self.layers.is_empty() || !self.deltas.is_empty(),
            "there are no adapters in this file"
        );
        Ok(())
    }

    /// Returns the adapters, to be applied with `strength`.
    ///
    /// # Errors
    /// Same as [`check`](Self::check), with the file's name.
    pub fn apply(self, path: &Path, strength: f64) -> anyhow::Result<AdapterFile> {
        self.check().with_context(|| path.display().to_string())?;
        Ok(AdapterFile {
            path: path.into(),
            strength,
            layers: self.layers,
            deltas: self.deltas,
        })
    }

    /// Writes the same adapters in another format.
    ///
    /// # Errors
    /// Fails if something cannot be applied, if a format needs the names of a family but none is known, and for
    /// anything that a format does not support.
    pub fn write(&self, format: Format) -> anyhow::Result<Vec<u8>> {
        self.check()?;
        let family = || {
            let family = self.families.first();
            family.context("the layers are not of a supported family, so their original names are unknown")
        };
        match format {
            Format::Diffusers | Format::Peft => diffusers::write(&self.layers, &self.deltas, &self.about),
            Format::ComfyUi | Format::Original => comfyui::write(&self.layers, &self.deltas, family()?, &self.about),
            Format::Kohya => kohya::write(&self.layers, &self.deltas, family()?, &self.about),
            Format::Genmo => genmo::write(&self.layers, &self.deltas, family()?, &self.about),
        }
    }
}

/// Checks for an adapter of a layer that has another already. vtrain's files for ComfyUI have some layers' under two
/// names, since no name is read by all programs.
fn differ(layer: &str, adapter: Option<&Adapter>, layers: &BTreeMap<String, Adapter>) -> anyhow::Result<bool> {
    match (adapter, layers.get(layer)) {
        (Some(adapter), Some(other)) => Ok(!adapter.is_same_change(other)?),
        _ => Ok(false),
    }
}

/// Layers of a file.
struct Translated {
    /// Names in diffusers and in the file, and what the file has; those under names of diffusers first.
    layers: Vec<(String, String, Parts)>,
    /// True if some names are those of the family's original checkpoint.
    original: bool,
}

/// Translates every layer's name to diffusers', and detects the families.
fn translate(
    format: Format,
    found: BTreeMap<String, Parts>,
    families: &[&'static Names],
    scales: &AlphaSource,
    strange: &mut Vec<UnsupportedTensor>,
) -> (Vec<&'static Names>, Translated) {
    let mut candidates = names::detect(families, found.keys().map(String::as_str));
    let elsewhere = matches!(format, Format::ComfyUi | Format::Kohya);
    if elsewhere && candidates.iter().any(|family| !family.diffusers_alone) {
        candidates.retain(|family| !family.diffusers_alone);
    }
    let mut translated = Translated {
        layers: Vec::new(),
        original: false,
    };
    let trusted = families.is_empty() && matches!(format, Format::Diffusers | Format::Peft);
    let is_own = |name: &str| candidates.first().is_some_and(|family| family.has(name));
    let (own, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(name, _)| is_own(name));
    for (there, parts) in own.into_iter().chain(others) {
        let ours = match candidates.first() {
            _ if trusted => vec![Located::whole(&there)],
            Some(family) => family.find(&there),
            None => Vec::new(),
        };
        if ours.is_empty() {
            let why = match candidates.first() {
                Some(family) => format!("is not a layer of {}", family.title),
                None if families.is_empty() => {
                    "is named as diffusers does not; vtrain lora convert --to diffusers makes a file that is".into()
                }
                None => "is not a layer of a supported family".into(),
            };
            strange.push(UnsupportedTensor { name: there, why });
            continue;
        }
        translated.original |= !trusted && !is_own(&there);
        match split::split(parts, &ours, |layer| scales.rank(layer)) {
            Ok(split) => {
                let named = split.into_iter().map(|(layer, parts)| (layer, there.clone(), parts));
                translated.layers.extend(named);
            }
            Err(why) => strange.push(UnsupportedTensor {
                name: there,
                why: format!("{why:#}"),
            }),
        }
    }
    (candidates, translated)
}

/// Reads an adapter file of diffusers or PEFT to be applied with `strength`; other formats need to know families.
///
/// # Errors
/// Same as [`diffusers_from_bytes`], with the file's name.
pub fn read_diffusers(path: &Path, strength: f64) -> anyhow::Result<AdapterFile> {
    read(path, &[])?.apply(path, strength)
}

/// Returns the adapters of a file of diffusers or PEFT, by layer.
///
/// # Errors
/// Fails for other files, and names tensors that are not adapters or lack their other half.
pub fn diffusers_from_bytes(bytes: &[u8]) -> anyhow::Result<BTreeMap<String, Adapter>> {
    let read = from_bytes(bytes, None, &[])?;
    read.check().context("this is no whole adapter file")?;
    Ok(read.layers)
}
