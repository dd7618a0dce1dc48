//! An adapter file of any format, read.
//!
//! The format is that of the tensors' names, the family that whose names they are. Alpha is taken from where it is written:
//! a tensor of the layer, PEFT's settings in the header, or those in `adapter_config.json` beside the file; where it is
//! not written, it is the rank.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device, Tensor};

use super::adapters::{Adapter, AdapterFile};
use super::bytes::About;
use super::format::{self, Format, Part};
use super::names::{self, Names};
use super::settings::{self, Settings};
use super::{comfyui, diffusers, kohya, scale};
use crate::finite;

/// PEFT's settings beside its adapter file.
const CONFIG: &str = "adapter_config.json";

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
    /// What cannot be applied.
    pub strange: Vec<Strange>,
    /// What else the header says: trigger words, training facts.
    pub about: About,
}

/// A tensor or layer of a file that cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Strange {
    pub name: String,
    pub why: String,
}

/// Reads an adapter file. `families` are those it may be for; without any, only names of diffusers are understood.
///
/// # Errors
/// As [`from_bytes`], with the file's name.
pub fn read(path: &Path, families: &[&'static Names]) -> anyhow::Result<Read> {
    let shown = || path.display().to_string();
    let size = std::fs::metadata(path).with_context(shown)?.len();
    ensure!(
        size <= MAX_BYTES,
        "{}: {size} bytes are too many for an adapter; is it the model itself?",
        path.display()
    );
    let bytes = std::fs::read(path).with_context(shown)?;
    let config = path.with_file_name(CONFIG);
    let config = match std::fs::metadata(&config) {
        Ok(found) if found.len() <= MAX_CONFIG_BYTES => std::fs::read_to_string(&config).ok(),
        _ => None,
    };
    from_bytes(&bytes, config.as_deref(), families).with_context(shown)
}

/// What is in an adapter file; `config` is the text of PEFT's `adapter_config.json`, used where the format is PEFT's.
///
/// # Errors
/// No safetensors, no adapters in it, several formats at once, settings that are no settings. Single tensors that cannot be
/// applied are no error here: see [`Read::check`].
pub fn from_bytes(bytes: &[u8], config: Option<&str>, families: &[&'static Names]) -> anyhow::Result<Read> {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).context("not a readable safetensors file")?;
    let tensors =
        candle_core::safetensors::load_buffer(bytes, &Device::Cpu).context("not a readable safetensors file")?;
    let mut about: About = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let mut strange = Vec::new();
    let mut formats = BTreeSet::new();
    let mut found: BTreeMap<String, Parts> = BTreeMap::new();
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    for (name, tensor) in tensors {
        match format::name(&name) {
            Ok(known) => {
                formats.insert(known.format);
                found.entry(known.layer.into()).or_default().put(known.part, tensor);
            }
            Err(why) => strange.push(Strange { name, why: why.into() }),
        }
    }
    let formats: Vec<Format> = formats.into_iter().collect();
    let format = match formats.as_slice() {
        [format] => *format,
        [] => match strange.first() {
            Some(first) => bail!(
                "there are no adapters in this file: the tensor {} {}",
                first.name,
                first.why
            ),
            None => bail!("there are no adapters in this file"),
        },
        many => bail!("the tensors are named in several formats at once: {many:?}"),
    };
    let scales = Scales::take(&mut about, format, config)?;
    let (families, found) = translate(format, found, families, &mut strange);
    let mut layers = BTreeMap::new();
    for (layer, parts) in found {
        match parts.adapter(&layer, &scales) {
            Ok(adapter) => drop(layers.insert(layer, adapter)),
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
        strange,
        about,
    })
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
        ensure!(!self.layers.is_empty(), "there are no adapters in this file");
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
        })
    }

    /// The same adapters as a file of another format.
    ///
    /// # Errors
    /// What cannot be applied is not converted; a format that needs the names of a family, where none is known.
    pub fn write(&self, format: Format) -> anyhow::Result<Vec<u8>> {
        self.check()?;
        let family = || {
            let family = self.families.first();
            family.context("the layers are of no family that vtrain knows, so their original names are not known")
        };
        match format {
            Format::Diffusers | Format::Peft => diffusers::write(&self.layers, &self.about),
            Format::ComfyUi => comfyui::write(&self.layers, family()?, &self.about),
            Format::Kohya => kohya::write(&self.layers, family()?, &self.about),
        }
    }
}

/// Gives every layer its name in diffusers, and says whose layers they are.
fn translate(
    format: Format,
    found: BTreeMap<String, Parts>,
    families: &[&'static Names],
    strange: &mut Vec<Strange>,
) -> (Vec<&'static Names>, BTreeMap<String, Parts>) {
    let name = |family: &Names, name: &str| match format {
        Format::Diffusers | Format::Peft => family.has(name).then(|| name.to_string()),
        Format::ComfyUi => family.layer(name),
        Format::Kohya => family.layer_of_flat(name),
    };
    let candidates = names::of(families, found.keys().map(String::as_str), |family, layer| {
        name(family, layer).is_some()
    });
    if matches!(format, Format::Diffusers | Format::Peft) {
        return (candidates, found); // the model knows best which layers it has
    }
    let mut translated = BTreeMap::new();
    for (layer, parts) in found {
        match candidates.first().and_then(|family| name(family, &layer)) {
            Some(ours) if translated.contains_key(&ours) => strange.push(Strange {
                name: layer,
                why: format!("is {ours}, which is there twice"),
            }),
            Some(ours) => drop(translated.insert(ours, parts)),
            None => strange.push(Strange {
                name: layer,
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

/// The tensors of one layer.
#[derive(Debug, Default)]
struct Parts {
    a: Option<Tensor>,
    b: Option<Tensor>,
    alpha: Option<Tensor>,
    twice: bool,
}

impl Parts {
    fn put(&mut self, part: Part, tensor: Tensor) {
        let place = match part {
            Part::A => &mut self.a,
            Part::B => &mut self.b,
            Part::Alpha => &mut self.alpha,
        };
        self.twice |= place.replace(tensor).is_some();
    }

    fn adapter(self, layer: &str, scales: &Scales) -> anyhow::Result<Adapter> {
        ensure!(!self.twice, "has tensors of one kind twice, under different names");
        let (Some(a), Some(b)) = (self.a, self.b) else {
            bail!("has only one of lora_A and lora_B");
        };
        for (half, tensor) in [("lora_A", &a), ("lora_B", &b)] {
            ensure!(
                tensor.rank() == 2,
                "has a {half} of shape {:?}, not two sides",
                tensor.dims()
            );
            ensure!(tensor.dtype().is_float(), "has a {half} of {:?}", tensor.dtype());
            if let Some(first) = finite::first(tensor)? {
                bail!("has a {half} that holds {first}");
            }
        }
        let rank = a.dim(0)?;
        ensure!(
            rank > 0 && b.dim(1)? == rank,
            "has a lora_A of rank {rank} and a lora_B of rank {}",
            b.dim(1)?
        );
        let alpha = self.alpha.map(|alpha| one_number(&alpha)).transpose()?;
        scales.of(layer, a, b, alpha)
    }
}

fn one_number(alpha: &Tensor) -> anyhow::Result<f64> {
    ensure!(
        alpha.elem_count() == 1,
        "has an alpha of shape {:?}, not one number",
        alpha.dims()
    );
    let alpha = alpha.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?[0];
    ensure!(alpha.is_finite(), "has an alpha of {alpha}");
    Ok(alpha)
}

/// What a file says of its scales besides tensors.
#[derive(Debug)]
struct Scales {
    /// PEFT's, which hold for what is in the file.
    settings: Settings,
    /// What they were before vtrain wrote a format that has no place for them.
    before: Option<Settings>,
    /// How B was multiplied by the scale of `before`, where it was.
    folded: Option<String>,
}

impl Scales {
    /// Takes the settings out of a header, or, in PEFT's format, from its file.
    fn take(about: &mut About, format: Format, config: Option<&str>) -> anyhow::Result<Self> {
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
        })
    }

    fn of(&self, layer: &str, a: Tensor, b: Tensor, alpha: Option<f64>) -> anyhow::Result<Adapter> {
        let rank = a.dim(0)?;
        if let Some(before) = &self.before
            && let Some(was) = before.alpha(layer)
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
        Ok(Adapter {
            a,
            b,
            use_rslora: alpha.is_none() && self.settings.use_rslora,
            alpha: alpha.or_else(|| self.settings.alpha(layer)).unwrap_or(rank as f64),
        })
    }
}
