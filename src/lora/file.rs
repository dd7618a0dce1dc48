//! An adapter file of any format, read.
//!
//! The format is that of the tensors' names, the family that whose names they are. Alpha is taken from where it is written:
//! a tensor of the layer, PEFT's settings in the header, or those in `adapter_config.json` beside the file; where it is
//! not written, it is the rank.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::adapters::{Adapter, AdapterFile, Deltas};
use super::bytes::About;
use super::format::{self, Format};
use super::names::{self, Names};
use super::parts::{self, Called, Parts};
use super::scales::{CONFIG, Scales};
use super::{comfyui, diffusers, kohya};
use crate::hub::layout;
use crate::magic;

/// No settings are larger.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// No adapter is larger; a model's weights are.
const MAX_BYTES: u64 = 8 << 30;

/// What was found in an adapter file.
#[derive(Debug)]
pub struct Read {
    pub format: Format,
    /// Whose layers these are. Several where the names fit several, none where they fit none.
    pub families: Vec<&'static Names>,
    /// By the layer's name in diffusers.
    pub layers: BTreeMap<String, Adapter>,
    /// What is added to whole parameters.
    pub deltas: Deltas,
    /// What cannot be applied.
    pub strange: Vec<Strange>,
    /// Whether some alpha is written nowhere, although files of this format have it beside them.
    pub alpha_is_a_guess: bool,
    /// What else the header says: trigger words, training facts.
    pub about: About,
}

/// A tensor or layer of a file that cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Strange {
    pub name: String,
    pub why: String,
}

/// Reads an adapter file, or the one in a folder as diffusers, PEFT and vtrain leave it. `families` are those it may be
/// for; without any, only names of diffusers are understood.
///
/// # Errors
/// As [`from_bytes`], with the file's name; a folder without an adapter, or with several.
pub fn read(path: &Path, families: &[&'static Names]) -> anyhow::Result<Read> {
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
            "{}: how strong it is meant to be is a guess: PEFT writes alpha into {CONFIG}, which {}; alpha is taken to be \
             the rank",
            path.display(),
            match config {
                Some(_) => "does not say it",
                None => "is not beside it",
            }
        );
    }
    Ok(read)
}

/// The adapter file that is meant: the path itself, or the one in that folder.
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

/// PEFT's settings beside an adapter file.
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

/// What is in an adapter file; `config` is the text of PEFT's `adapter_config.json`, used where the format is PEFT's.
///
/// # Errors
/// No safetensors, no adapters in it, several formats at once, settings that are no settings. Single tensors that cannot be
/// applied are no error here: see [`Read::check`].
pub fn from_bytes(bytes: &[u8], config: Option<&str>, families: &[&'static Names]) -> anyhow::Result<Read> {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).context("not a readable safetensors file")?;
    let tensors = safetensors::SafeTensors::deserialize(bytes).context("not a readable safetensors file")?;
    let mut about: About = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let mut strange = Vec::new();
    let mut formats = BTreeSet::new();
    let mut found: BTreeMap<String, Parts> = BTreeMap::new();
    for (name, view) in tensors.tensors().into_iter().collect::<BTreeMap<_, _>>() {
        match format::name(&name) {
            Ok(known) => {
                formats.insert(known.format);
                match parts::load(&view) {
                    Ok(tensor) => found.entry(known.layer).or_default().put(known.part, tensor),
                    Err(error) => strange.push(Strange {
                        name,
                        why: format!("cannot be read: {error}"),
                    }),
                }
            }
            Err(why) => strange.push(Strange { name, why: why.into() }),
        }
    }
    let format = the_only(&formats, &strange)?;
    let mut scales = Scales::take(&mut about, format, config)?;
    let (families, found) = translate(format, found, families, &mut strange);
    let format = match format {
        Format::Diffusers if found.original => Format::Original,
        format => format,
    };
    let (mut layers, mut deltas) = (BTreeMap::new(), Deltas::new());
    for (layer, (there, parts)) in found.layers {
        let called = Called {
            layer: &layer,
            there: &there,
            table: families.first().is_some_and(|family| family.is_table(&layer)),
        };
        match parts.take(called, &mut scales) {
            Ok((adapter, more)) => {
                deltas.extend(more);
                layers.extend(adapter.map(|adapter| (layer, adapter)));
            }
            Err(why) => strange.push(Strange {
                name: layer,
                why: why.to_string(),
            }),
        }
    }
    Ok(Read {
        format,
        families,
        layers,
        deltas,
        strange,
        alpha_is_a_guess: scales.guessed,
        about,
    })
}

/// The format of all tensors.
fn the_only(formats: &BTreeSet<Format>, strange: &[Strange]) -> anyhow::Result<Format> {
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

impl Read {
    /// Whether all that is in the file can be applied.
    ///
    /// # Errors
    /// The first thing that cannot, and how many there are.
    pub fn check(&self) -> anyhow::Result<()> {
        if let Some(Strange { name, why }) = self.strange.first() {
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

    /// The adapters, to be applied with `strength`.
    ///
    /// # Errors
    /// As [`check`](Self::check), with the file's name.
    pub fn apply(self, path: &Path, strength: f64) -> anyhow::Result<AdapterFile> {
        self.check().with_context(|| path.display().to_string())?;
        Ok(AdapterFile {
            path: path.into(),
            strength,
            layers: self.layers,
            deltas: self.deltas,
        })
    }

    /// The same adapters as a file of another format.
    ///
    /// # Errors
    /// What cannot be applied is not converted; a format that needs the names of a family, where none is known; what a
    /// format has no place for.
    pub fn write(&self, format: Format) -> anyhow::Result<Vec<u8>> {
        self.check()?;
        let family = || {
            let family = self.families.first();
            family.context("the layers are of no family that vtrain knows, so their original names are not known")
        };
        match format {
            Format::Diffusers | Format::Peft => diffusers::write(&self.layers, &self.deltas, &self.about),
            Format::ComfyUi | Format::Original => comfyui::write(&self.layers, &self.deltas, family()?, &self.about),
            Format::Kohya => kohya::write(&self.layers, &self.deltas, family()?, &self.about),
        }
    }
}

/// Layers by their names in diffusers, each with its name in the file.
struct Translated {
    layers: BTreeMap<String, (String, Parts)>,
    /// Whether some were called as in the checkpoint that the family's makers published.
    original: bool,
}

/// Gives every layer its name in diffusers, and says whose layers they are.
fn translate(
    format: Format,
    found: BTreeMap<String, Parts>,
    families: &[&'static Names],
    strange: &mut Vec<Strange>,
) -> (Vec<&'static Names>, Translated) {
    let candidates = names::of(families, found.keys().map(String::as_str));
    let mut translated = Translated {
        layers: BTreeMap::new(),
        original: false,
    };
    let trusted = families.is_empty() && matches!(format, Format::Diffusers | Format::Peft);
    for (there, parts) in found {
        let ours = match candidates.first() {
            _ if trusted => Some(there.clone()),
            Some(family) => family.find(&there),
            None => None,
        };
        match ours {
            Some(ours) if translated.layers.contains_key(&ours) => strange.push(Strange {
                name: there,
                why: format!("is {ours}, which is there twice"),
            }),
            Some(ours) => {
                translated.original |= candidates.first().is_some_and(|family| !family.has(&there));
                translated.layers.insert(ours, (there, parts));
            }
            None => strange.push(Strange {
                name: there,
                why: match candidates.first() {
                    Some(family) => format!("is no layer of {}", family.title),
                    None if families.is_empty() => {
                        "is named as diffusers does not; vtrain lora convert --to diffusers makes a file that is".into()
                    }
                    None => "is a layer of no family that vtrain knows".into(),
                },
            }),
        }
    }
    (candidates, translated)
}
