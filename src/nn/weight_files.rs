//! Weight files of a folder: one `*.safetensors`, or several with an index from tensors to files; the usual ones or a
//! variant of them ([`layout`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};

use super::named_file::NamedFile;
use crate::hub::layout::{self, Kind, WeightFile};
use crate::magic;

/// Upper limit for a shard index.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// A folder of weights or of such folders, with the requested variant. Weights may lie elsewhere: those of the folder in
/// a file, those of a part in another folder.
#[derive(Debug, Clone)]
pub struct WeightFolder {
    path: PathBuf,
    variant: Option<String>,
    /// File that is read in place of the folder's own weights.
    file: Option<Arc<NamedFile>>,
    /// Parts that are not subfolders.
    parts: BTreeMap<String, WeightFolder>,
}

impl WeightFolder {
    /// Folder with a `variant` as in `model.fp16.safetensors`; if it does not exist, the usual files are read.
    pub fn new(path: &Path, variant: Option<&str>) -> Self {
        Self {
            path: path.into(),
            variant: variant.map(String::from),
            file: None,
            parts: BTreeMap::new(),
        }
    }

    /// Returns the part `name`: the subfolder, if it does not lie elsewhere.
    pub fn part(&self, name: &str) -> Self {
        let elsewhere = self.parts.get(name).cloned();
        elsewhere.unwrap_or_else(|| Self::new(&self.path.join(name), self.variant()))
    }

    /// Takes the part `name` from elsewhere.
    pub fn with_part(mut self, name: &str, part: Self) -> Self {
        self.parts.insert(name.into(), part);
        self
    }

    /// Reads the weights from `file` instead; the config is the folder's.
    pub fn with_file(mut self, file: NamedFile) -> Self {
        self.file = Some(Arc::new(file));
        self
    }

    /// Returns the file that is read in place of the folder's own weights.
    pub fn file(&self) -> Option<&NamedFile> {
        self.file.as_deref()
    }

    /// Returns where the weights are: the folder, or the file that is read in its place.
    pub fn source(&self) -> &Path {
        self.file().map_or(&self.path, |file| &file.path)
    }

    /// Returns the requested variant.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }
}

impl Deref for WeightFolder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for WeightFolder {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl From<&Path> for WeightFolder {
    fn from(path: &Path) -> Self {
        Self::new(path, None)
    }
}

impl From<&PathBuf> for WeightFolder {
    fn from(path: &PathBuf) -> Self {
        Self::new(path, None)
    }
}

impl From<&WeightFolder> for WeightFolder {
    fn from(folder: &WeightFolder) -> Self {
        folder.clone()
    }
}

/// Weight files of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFiles {
    /// Files, sorted by name.
    pub paths: Vec<PathBuf>,
    /// Names of the tensors listed in an index.
    pub promised: Vec<String>,
    /// Variant of the files.
    pub variant: Option<String>,
}

impl WeightFolder {
    /// Finds the files.
    ///
    /// # Errors
    /// Fails without files, for several without an index, several variants without the requested one, and an index that
    /// names missing files.
    pub fn files(&self) -> anyhow::Result<WeightFiles> {
        if let Some(file) = self.file() {
            return Ok(WeightFiles {
                paths: vec![file.path.clone()],
                promised: Vec::new(),
                variant: None,
            });
        }
        let names = self.names()?;
        let weights: Vec<(&str, WeightFile)> = names
            .iter()
            .filter_map(|name| Some((name.as_str(), WeightFile::of(name)?)))
            .collect();
        ensure!(!weights.is_empty(), "{}: {}", self.display(), missing(&names));
        let variant = layout::variant(weights.iter().map(|(name, _)| *name), self.variant())
            .with_context(|| self.display().to_string())?;
        match (variant, self.variant()) {
            (Some(only), None) => log::info!("{}: read as the variant {only}, the only one there", self.display()),
            (None, Some(wanted)) => log::info!("{}: has no variant {wanted}; read as usual", self.display()),
            _ => {}
        }
        let of_kind = |kind| {
            let these = weights
                .iter()
                .filter(|(_, file)| file.variant == variant && file.kind == kind);
            these.map(|(name, _)| *name).collect::<Vec<_>>()
        };
        let (paths, promised) = match (of_kind(Kind::Index).first(), of_kind(Kind::Whole).as_slice()) {
            (Some(index), _) => sharded(self, &self.join(index))?,
            (None, [one]) => (vec![self.join(one)], Vec::new()),
            (None, whole) => bail!(
                "{}: {} safetensors files without an index",
                self.display(),
                whole.len() + of_kind(Kind::Shard).len()
            ),
        };
        Ok(WeightFiles {
            paths,
            promised,
            variant: variant.map(String::from),
        })
    }

    fn names(&self) -> anyhow::Result<Vec<String>> {
        let entries =
            std::fs::read_dir(self).with_context(|| format!("{}: no such folder of weights", self.display()))?;
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        Ok(names)
    }
}

/// Message for a folder without safetensors.
fn missing(names: &[String]) -> String {
    let other = names
        .iter()
        .find(|name| layout::is_pickle(name) || name.ends_with(".gguf") || name.ends_with(".msgpack"));
    match other {
        Some(name) => format!(
            "no safetensors file, only {name}, which is not read here (pickles can run code; a GGUF file of a transformer is \
             given as model.transformer or --transformer); download the model's weights as safetensors, or load them in \
             diffusers and save_pretrained them"
        ),
        None => "no safetensors file; download the model's weights in that format".into(),
    }
}

/// Message for a file that is not safetensors.
pub fn unreadable(path: &Path) -> String {
    match magic::explain(path) {
        Some(what) => format!("{}: is {what}", path.display()),
        None => format!("{}: not a readable safetensors file", path.display()),
    }
}

fn sharded(folder: &Path, index: &Path) -> anyhow::Result<(Vec<PathBuf>, Vec<String>)> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let size = std::fs::metadata(index)
        .with_context(|| index.display().to_string())?
        .len();
    ensure!(
        size <= MAX_INDEX_BYTES,
        "{}: {size} bytes are too many for an index",
        index.display()
    );
    let text = std::fs::read_to_string(index).with_context(|| index.display().to_string())?;
    let Index { weight_map } =
        serde_json::from_str(&text).with_context(|| format!("{}: not a shard index", index.display()))?;
    let files: BTreeSet<&String> = weight_map.values().collect();
    let mut paths = Vec::new();
    for file in files {
        ensure!(
            Path::new(file).file_name().is_some_and(|name| name == file.as_str()),
            "{}: the shard name '{file}' is not a plain file name",
            index.display()
        );
        let path = folder.join(file);
        ensure!(
            path.is_file(),
            "{}: the shard {file} is missing; fetch it again",
            index.display()
        );
        paths.push(path);
    }
    Ok((paths, weight_map.into_keys().collect()))
}
