//! Model families, their common interface, and the only list of them (`registry`).

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use candle_core::{DType, Device};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::distributed::Communicator;
use crate::nn::load::PartQuantization;
use crate::nn::quantized_cache::CacheFolder;
use crate::nn::residency::{Residency, ResidentShare};
use crate::nn::storage::quantize::QuantizationSetting;
use crate::nn::{Load, WeightFolder};
use crate::paths;
use crate::problems::Problems;

pub mod ada_ln_single;
pub mod allegro;
pub mod autoencoder;
mod checkpoint;
pub mod checkpoint_dir;
pub mod cogvideox;
pub mod conditions;
pub mod denoiser;
pub mod dense_modules;
pub mod encoders;
pub mod family;
pub mod few_bits;
pub mod footprint;
pub mod gguf;
pub mod gguf_spec;
pub mod hunyuan_video;
pub mod input_spec;
pub mod latent_norm;
pub mod latent_size;
pub mod llama_conditioner;
pub mod llava;
pub mod llava_conditioner;
pub mod ltx_video;
pub mod mochi;
pub mod offload;
mod other_transformer;
mod ramps;
pub mod registry;
mod single_file;
pub mod synthetic;
pub mod t5_conditioner;
pub mod text_embeds;
pub mod text_memory;
mod tiles;
pub mod tiling;
pub mod transformer;
pub mod vae;
pub mod wan;

pub use checkpoint::{is_whole, open, open_with};
pub use checkpoint_dir::{CachedConfigs, part};
pub use family::Family;
pub use footprint::Footprint;
pub use offload::Offload;
pub use other_transformer::replace_transformer;

/// `model:` in a run file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Model family; `auto` reads it from the checkpoint's `model_index.json`.
    pub family: FamilyName,
    /// A diffusers directory, or a repository of the Hugging Face Hub (`THUDM/CogVideoX-5b`).
    pub path: String,
    /// Branch, tag or commit of a Hub repository.
    pub revision: String,
    /// Variant of the weights: `fp16` reads `model.fp16.safetensors`. Parts without it are read as usual; without a
    /// choice, a variant is read only if there is nothing else.
    pub variant: Option<String>,
    /// Another transformer than the checkpoint's own, of the same family: a GGUF file, a single safetensors file with the
    /// makers' names or diffusers', or a folder with `config.json` and weights. A file is read by the checkpoint's config.
    pub transformer: Option<PathBuf>,
    /// Storage type of the frozen weights.
    pub dtype: Dtype,
    /// Form that the transformer's linear layers are stored in while it loads: fewer bits, less memory. Layers that the
    /// checkpoint has in few bits stay as they are. `auto`: int8 or nf4, where the run does not fit in memory otherwise.
    pub quantization: QuantizationSetting,
    /// The same for the text encoder.
    pub text_encoder_quantization: QuantizationSetting,
    /// Folder that keeps what was stored while loading, so that the next start reads it: `auto` (`vtrain/quantized` in the
    /// user's folder of caches), `none`, or a path.
    pub quantization_cache: CacheFolder,
    /// Sharing of the frozen weights among several processes that train together.
    pub sharding: Sharding,
    /// Frozen weights that leave memory while they are not needed: less memory, and no other result. `auto`: those that must, for the
    /// run to fit in memory.
    pub offload: Offload,
    /// With `offload: group`: the share of blocks that stay in memory all the same, 0 to 1. auto: as many as there is room
    /// for.
    pub offload_resident: ResidentShare,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            family: FamilyName::Auto,
            path: String::new(),
            revision: "main".into(),
            variant: None,
            transformer: None,
            dtype: Dtype::Bf16,
            quantization: QuantizationSetting::None,
            text_encoder_quantization: QuantizationSetting::None,
            quantization_cache: CacheFolder::Auto,
            sharding: Sharding::None,
            offload: Offload::None,
            offload_resident: ResidentShare::Auto,
        }
    }
}

impl Config {
    /// Checks for values that parse but make no sense, by path below `model`.
    pub fn check(&self, problems: &mut Problems) {
        if self.path.trim().is_empty() {
            problems.push("path", "is required: a diffusers directory or a Hub repository");
        }
        if self.revision.trim().is_empty() {
            problems.push("revision", "must not be empty; the default is main");
        }
        if self
            .transformer
            .as_ref()
            .is_some_and(|path| path.as_os_str().is_empty())
        {
            problems.push("transformer", "must not be empty; null takes the checkpoint's own");
        }
        if let Some(variant) = &self.variant
            && (variant.is_empty()
                || !variant
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')))
        {
            let message = format!("'{variant}' is not a variant, such as fp16 in model.fp16.safetensors");
            problems.push("variant", message);
        }
        self.check_offload(problems);
    }

    fn check_offload(&self, problems: &mut Problems) {
        let ResidentShare::Share(share) = self.offload_resident else {
            return;
        };
        if !(0.0..=1.0).contains(&share) {
            let message = format!("must be auto, or a share between 0 and 1, got {share}");
            problems.push("offload_resident", message);
        }
        if !matches!(self.offload, Offload::Group | Offload::Auto) {
            problems.push("offload_resident", "needs offload: group; remove one of the two");
        }
    }

    /// Returns the checkpoint's folder, given its directory; with the transformer that takes the place of its own.
    ///
    /// # Errors
    /// Same as [`replace_transformer`].
    pub fn folder(&self, directory: &Path) -> anyhow::Result<WeightFolder> {
        let folder = self.own_folder(directory);
        match &self.transformer {
            Some(path) => replace_transformer(folder, path).context("model.transformer"),
            None => Ok(folder),
        }
    }

    /// Returns the checkpoint's folder, with its own transformer.
    pub fn own_folder(&self, directory: &Path) -> WeightFolder {
        WeightFolder::new(directory, self.variant.as_deref())
    }

    /// How its parts are loaded to be used one after the other, without adapters.
    pub fn load(&self, device: &Device) -> Load {
        Load::new(self.dtype.into(), device)
            .with_quantization(self.part_quantization())
            .with_quantized_cache(self.quantization_cache.path().as_deref())
            .with_residency(self.offload.residency(self.offload_resident))
    }

    /// Forms that its parts are stored in while they load.
    pub fn part_quantization(&self) -> PartQuantization {
        PartQuantization {
            transformer: self.quantization.form(),
            text_encoder: self.text_encoder_quantization.form(),
        }
    }

    /// Where the transformer's frozen blocks are, among these ranks.
    pub fn residency(&self, ranks: &dyn Communicator) -> Residency {
        let own = self.offload.residency_beside_others(self.offload_resident);
        match (self.sharding, ranks.sharing(), own) {
            (Sharding::Full, Some(ranks), Residency::Streamed(share)) => Residency::StreamedShards(ranks, share),
            (Sharding::Full, Some(ranks), _) => Residency::Sharded(ranks),
            (_, _, own) => own,
        }
    }

    /// Makes the paths of files and directories absolute. `owner/name` is a directory where there is one, else a Hub repository.
    pub fn resolve(&mut self, folder: &Path) {
        let path = Path::new(&self.path);
        let looks_local = path.is_absolute() || self.path.starts_with('.') || self.path.matches('/').count() != 1;
        if looks_local || folder.join(path).is_dir() {
            self.path = paths::normalize(&folder.join(path)).to_string_lossy().into_owned();
        }
        if let Some(transformer) = &mut self.transformer {
            *transformer = paths::normalize(&folder.join(&*transformer));
        }
        self.quantization_cache.resolve(folder);
    }

    /// Returns the directory, if `path` is one.
    pub fn directory(&self) -> Option<PathBuf> {
        Some(PathBuf::from(&self.path)).filter(|path| path.is_absolute())
    }

    /// Returns the size of an encoded clip and caption: by the directory's own configs, else by the family's published
    /// checkpoints; None if the family is not known yet.
    pub fn footprint(&self) -> Option<Footprint> {
        let directory = self.directory();
        let here = directory.as_deref().and_then(|directory| {
            let spec = registry::of_checkpoint(directory).ok()?;
            let opened = open(self.own_folder(directory), FamilyName::Auto);
            Some(opened.map_or(spec.footprint, |family| family.spec().footprint))
        });
        here.or_else(|| {
            let path = self.path.to_lowercase();
            let mut families = registry::FAMILIES.iter();
            let spec = families.find(|spec| match self.family {
                FamilyName::Auto => path.contains(spec.repository),
                family => family == spec.name,
            });
            Some(spec?.footprint)
        })
    }
}

/// Number format of the frozen weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32-bit floating point.
    F32,
    /// bfloat16.
    Bf16,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

/// Sharing of the transformer's frozen weights among processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sharding {
    /// Every process has all of them.
    #[default]
    None,
    /// Each keeps its part of every block, and has whole blocks only while they run: for models larger than one GPU.
    Full,
}

/// Families, by their names in run files; see `registry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FamilyName {
    /// Detected by the checkpoint's class names.
    #[serde(rename = "auto")]
    Auto,
    /// CogVideoX 2b, 5b and 1.5.
    #[serde(rename = "cogvideox")]
    CogVideoX,
    /// LTX-Video 0.9.0, 0.9.1 and 0.9.5.
    #[serde(rename = "ltx_video")]
    LtxVideo,
    /// Wan 2.1.
    #[serde(rename = "wan")]
    Wan,
    /// HunyuanVideo.
    #[serde(rename = "hunyuan_video")]
    HunyuanVideo,
    /// Mochi 1.
    #[serde(rename = "mochi")]
    Mochi,
    /// Allegro.
    #[serde(rename = "allegro")]
    Allegro,
}
