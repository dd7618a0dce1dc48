//! Tensors of a checkpoint's files by the model's names, each read once: of safetensors, memory-mapped, or of GGUF.
//! Matrices may be stored in few bits ([`super::storage`]), in safetensors each in several tensors.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use safetensors::tensor::TensorView;
use serde_json::Value;

use super::file_tensor::{Cut, FileTensor};
use super::fused_rows::Rows;
use super::named_file::{NamedFile, NamedTensor};
use super::storage::Parts;
use super::storage::detect::{self, StoredForm, StoredForms};
use super::tensor_file::TensorFile;
use super::weight_files::{WeightFiles, WeightFolder};
use crate::diffusers_config as config;
use crate::ops::bytes::Origin;
use crate::ops::stored::StoredMatrix;
use crate::process::memory::{self, Limit, TooLittle};

/// Files of a checkpoint, and the tensors that layers have read of them.
pub(super) struct Checkpoint {
    pub(super) folder: WeightFolder,
    files: Arc<[TensorFile]>,
    tensors: Arc<BTreeMap<String, Place>>,
    /// Matrices of safetensors in few bits. Those of GGUF are whole entries there.
    stored: Arc<StoredForms>,
    /// Metadata of the files.
    pub(super) metadata: Arc<HashMap<String, String>>,
    /// Tensors that no layer has requested yet.
    unread: Mutex<BTreeSet<String>>,
}

/// The place of a tensor.
struct Place {
    /// Index of the file.
    file: usize,
    /// Name in the file.
    name: String,
    /// Part of the tensor there.
    cut: Cut,
}

/// The size of a tensor.
pub(super) enum Size {
    /// Bytes of a part of a stored matrix, or of all of it.
    Stored(u64),
    /// Shape of one that is dense.
    Dense(Vec<usize>),
}

impl Checkpoint {
    pub(super) fn open(folder: &WeightFolder) -> anyhow::Result<Self> {
        let WeightFiles { paths, promised, .. } = folder.files()?;
        let sizes = paths
            .iter()
            .filter_map(|path| Some(std::fs::metadata(path).ok()?.len()));
        ensure_addresses(folder, sizes.sum())?;
        let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
        for path in &paths {
            let file = match folder.file() {
                Some(_) => TensorFile::open(path)?,
                None => TensorFile::open_safetensors(path)?,
            };
            for (name, in_file) in named(folder.file(), &file)? {
                let cut = Cut::of(&file, &in_file.name, in_file.rows);
                let cut = cut.with_context(|| path.display().to_string())?;
                if cut == Cut::Rows(Vec::new()) {
                    continue; // another layer has this name there
                }
                let place = Place {
                    file: files.len(),
                    cut,
                    name: in_file.name,
                };
                tensors.insert(name, place);
            }
            files.push(file);
        }
        let missing: Vec<&String> = promised.iter().filter(|name| !tensors.contains_key(*name)).collect();
        ensure!(
            missing.is_empty(),
            "{}: the index lists {} tensors that no shard holds, first {}; fetch the shards again",
            folder.display(),
            missing.len(),
            missing[0]
        );
        let mut this = Self {
            folder: folder.clone(),
            files: files.into(),
            tensors: Arc::new(tensors),
            stored: Arc::default(),
            metadata: Arc::default(),
            unread: Mutex::default(),
        };
        let (stored, metadata) = this
            .stored_forms()
            .with_context(|| folder.source().display().to_string())?;
        (this.stored, this.metadata) = (Arc::new(stored), Arc::new(metadata));
        Ok(this.again())
    }

    /// Returns the same checkpoint, of which nothing has been read.
    pub(super) fn again(&self) -> Self {
        let unread = self.tensors.keys().filter(|name| !self.stored.markers.contains(name));
        Self {
            folder: self.folder.clone(),
            files: self.files.clone(),
            tensors: self.tensors.clone(),
            stored: self.stored.clone(),
            metadata: self.metadata.clone(),
            unread: Mutex::new(unread.cloned().collect()),
        }
    }

    /// Finds the matrices in few bits by the headers of the files, and by the config beside them unless that is another
    /// checkpoint's.
    fn stored_forms(&self) -> anyhow::Result<(StoredForms, HashMap<String, String>)> {
        let (mut headers, mut described) = (detect::Headers::default(), Vec::new());
        for file in &*self.files {
            let detect::Headers { tensors, metadata } = file.headers()?;
            headers.metadata.extend(metadata);
            described.push(tensors);
        }
        for (name, place) in &*self.tensors {
            let shape = self.place(name).and_then(|tensor| tensor.shape());
            if let (Some((dtype, _)), Some(shape)) = (described[place.file].get(&place.name), shape) {
                headers.tensors.insert(name.clone(), (*dtype, shape));
            }
        }
        let path = self.folder.join("config.json");
        let config = (path.exists() && self.folder.file().is_none()).then(|| config::text(&path));
        // A config that cannot be read is told of where it is needed.
        let config: Option<Value> = config.transpose()?.and_then(|text| serde_json::from_str(&text).ok());
        let stored = headers.stored_forms(config.as_ref().and_then(|config| config.get("quantization_config")))?;
        Ok((stored, headers.metadata))
    }

    /// Returns a tensor in its file.
    fn place(&self, name: &str) -> Option<FileTensor<'_>> {
        let Place { file, name, cut } = self.tensors.get(name)?;
        let file = &self.files[*file];
        Some(FileTensor { file, name, cut })
    }

    /// Returns the path of the file with a tensor.
    pub(super) fn path_of(&self, name: &str) -> &Path {
        self.place(name)
            .map_or_else(|| self.folder.source(), |tensor| tensor.file.path())
    }

    /// Returns the name of a tensor for messages, with the one that it has in the file.
    pub(super) fn shown(&self, name: &str) -> String {
        let in_file = self.folder.file().and_then(|file| file.in_file(name));
        match in_file.filter(|in_file| in_file != name) {
            Some(in_file) => format!("{name} ({in_file} in the file)"),
            None => name.into(),
        }
    }

    /// Returns the names and sizes of its tensors.
    pub(super) fn sizes(&self) -> impl Iterator<Item = (&str, Size)> {
        let stored: BTreeSet<&String> = self.stored.matrices.values().flat_map(|form| &form.parts).collect();
        self.tensors.keys().filter_map(move |name| {
            let tensor = self.place(name)?;
            let size = match stored.contains(name) || tensor.is_blocks() {
                true => Size::Stored(tensor.bytes()),
                false => Size::Dense(tensor.shape()?),
            };
            Some((name.as_str(), size))
        })
    }

    /// Returns true for a parameter of this name, dense or stored.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.is_stored(name)
    }

    /// Returns the paths of its files.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path().to_path_buf()).collect()
    }

    /// Returns the names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.tensors.keys()
    }

    /// Releases the mapped bytes of a tensor that was read.
    pub(super) fn unload(&self, name: &str) {
        if let Some(tensor) = self.place(name) {
            tensor.unload();
        }
    }

    /// Returns where the numbers of a dense tensor lie in a file, if they are in this format there.
    pub(super) fn origin_as(&self, name: &str, dtype: DType) -> Option<Origin> {
        let tensor = self.place(name)?;
        let same = !self.is_stored(name) && tensor.dtype() == Some(dtype);
        same.then(|| tensor.origin()).flatten()
    }

    /// Returns the forms of the matrices in few bits, by path.
    pub(super) fn forms(&self) -> &BTreeMap<String, StoredForm> {
        &self.stored.matrices
    }

    /// Returns the names of tensors that only mark a file.
    pub(super) fn markers(&self) -> &[String] {
        &self.stored.markers
    }

    /// Returns true for a matrix in few bits.
    pub(super) fn is_stored(&self, name: &str) -> bool {
        self.stored.matrices.contains_key(name) || self.place(name).is_some_and(|tensor| tensor.is_blocks())
    }

    /// Returns the bytes of a matrix in few bits; None for one that is dense.
    pub(super) fn stored_bytes(&self, name: &str) -> Option<u64> {
        if let Some(form) = self.stored.matrices.get(name) {
            let parts = form.parts.iter().filter_map(|part| self.place(part));
            return Some(parts.map(|part| part.bytes()).sum());
        }
        let tensor = self.place(name)?;
        tensor.is_blocks().then(|| tensor.bytes())
    }

    /// Marks the parameter `name` as requested; false if there is none of this shape.
    pub(super) fn request(&self, name: &str, shape: &Shape) -> bool {
        match self.form(name) {
            Some(form) => form.shape(self, name).is_ok_and(|found| found == shape.dims()),
            None => self.find(name, shape).is_some(),
        }
    }

    fn unread(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the tensors that no layer has requested, without those whose names begin with one of `ignored`.
    pub(super) fn unread_but(&self, ignored: &[&str]) -> Vec<String> {
        let unread = self.unread();
        let extra = unread
            .iter()
            .filter(|name| !ignored.iter().any(|p| name.starts_with(p)));
        extra.cloned().collect()
    }

    /// Returns the form of a stored matrix of safetensors, and marks its tensors as requested.
    fn form(&self, name: &str) -> Option<&StoredForm> {
        let form = self.stored.matrices.get(name)?;
        let mut unread = self.unread();
        form.parts.iter().for_each(|part| _ = unread.remove(part));
        Some(form)
    }

    /// Reads the matrix `name` in its stored form; None if it is dense.
    pub(super) fn stored(
        &self,
        name: &str,
        shape: (usize, usize),
        device: &Device,
    ) -> Result<Option<Arc<dyn StoredMatrix>>> {
        if !self.is_stored(name) {
            return Ok(None);
        }
        if !self.request(name, &shape.into()) {
            return Err(Error::Msg(self.complaint(name, &shape.into())));
        }
        let read = match (self.form(name), self.place(name)) {
            (Some(form), _) => self.read_parts(form, name, shape, device),
            (None, Some(tensor)) => tensor.matrix(shape, device),
            (None, None) => Ok(None),
        };
        let named = |error| {
            Error::Msg(format!(
                "{}: reading the matrix {name}: {error}",
                self.path_of(name).display()
            ))
        };
        read.map_err(named)
    }

    fn read_parts(
        &self,
        form: &StoredForm,
        name: &str,
        shape: (usize, usize),
        device: &Device,
    ) -> Result<Option<Arc<dyn StoredMatrix>>> {
        let read = form.read(self, name, shape, device);
        for part in form.parts.iter().filter_map(|part| self.place(part)) {
            part.unload();
        }
        let reordered = |matrix| match self.place(name) {
            Some(tensor) => tensor.reordered(matrix),
            None => matrix,
        };
        read.map(|matrix| Some(reordered(matrix)))
    }

    /// Returns the tensor of this name and shape in its file, and marks it as requested.
    fn find(&self, name: &str, shape: &Shape) -> Option<FileTensor<'_>> {
        let tensor = self.place(name)?;
        self.unread().remove(name);
        tensor.has(shape.dims()).then_some(tensor)
    }

    /// Explains why there is no tensor of this name and shape.
    pub(super) fn complaint(&self, name: &str, shape: &Shape) -> String {
        let form = self.stored.matrices.get(name).map(|form| form.shape(self, name));
        let dense = || self.place(name).and_then(|tensor| tensor.shape()).map(Ok);
        let (path, shown) = (self.path_of(name).display(), self.shown(name));
        match form.or_else(dense) {
            Some(Ok(found)) => {
                return format!(
                    "{path}: the tensor {shown} should be {:?} by config.json, but is {found:?}",
                    shape.dims()
                );
            }
            Some(Err(error)) => return format!("{path}: reading the matrix {shown}: {error}"),
            None => {}
        }
        let near = self
            .tensors
            .keys()
            .max_by(|a, b| strsim::normalized_levenshtein(a, name).total_cmp(&strsim::normalized_levenshtein(b, name)));
        let near = near.map_or(String::new(), |near| {
            format!("; the nearest name is {}", self.shown(near))
        });
        format!("{path}: the tensor {shown} {:?} is missing{near}", shape.dims())
    }

    pub(super) fn read(&self, name: &str, shape: &Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        if let &[rows, columns] = shape.dims()
            && let Some(stored) = self.stored(name, (rows, columns), device)?
        {
            return stored.rows(0..rows, dtype);
        }
        let Some(tensor) = self.find(name, shape) else {
            return Err(Error::Msg(self.complaint(name, shape)));
        };
        let path = tensor.file.path().display();
        let named = |error| Error::Msg(format!("{path}: reading the tensor {name}: {error}"));
        tensor.read(shape.dims(), dtype, device).map_err(named)
    }
}

impl Parts for Checkpoint {
    fn part(&self, name: &str) -> Result<TensorView<'_>> {
        match self.place(name) {
            Some(tensor) => tensor.view(),
            None => Err(Error::Msg(format!("the tensor {name} is missing"))),
        }
    }

    fn origin(&self, name: &str) -> Option<Origin> {
        self.place(name)?.origin()
    }
}

/// Returns the names of a file's tensors: the model's, and the file's.
fn named(names: Option<&NamedFile>, file: &TensorFile) -> anyhow::Result<Vec<(String, NamedTensor)>> {
    let there = file.names();
    let Some(names) = names else {
        let whole = |name: String| NamedTensor { name, rows: Rows::All };
        return Ok(there.into_iter().map(|name| (name.clone(), whole(name))).collect());
    };
    let there: BTreeSet<String> = there.into_iter().collect();
    if let Some(gone) = names.names.values().find(|tensor| !there.contains(&tensor.name)) {
        bail!(
            "{}: the tensor {} was there when the file was opened, and is no more; do not change it meanwhile",
            file.path().display(),
            gone.name
        );
    }
    let pairs = names.names.iter();
    Ok(pairs.map(|(name, in_file)| (name.clone(), in_file.clone())).collect())
}

/// Checks that files of this total size can be mapped.
fn ensure_addresses(folder: &WeightFolder, needed: u64) -> std::result::Result<(), TooLittle> {
    match memory::most() {
        Some(free) if free.limit == Limit::AddressSpace && free.bytes < needed => Err(TooLittle {
            what: format!("{}, which is mapped,", folder.display()),
            needed,
            free,
            instead: None,
        }),
        _ => Ok(()),
    }
}

/// Returns the first non-finite tensor in `folder`, by file, name and index; None if all are finite. Reads all of them:
/// for the search of a non-finite result's cause.
///
/// # Errors
/// Same as [`super::Weights::open`].
pub fn not_finite(folder: impl Into<WeightFolder>) -> anyhow::Result<Option<String>> {
    let checkpoint = Checkpoint::open(&folder.into())?;
    for name in checkpoint.tensors.keys() {
        let found = checkpoint.place(name).and_then(|tensor| tensor.not_finite());
        if let Some(first) = found {
            let (path, shown) = (checkpoint.path_of(name).display(), checkpoint.shown(name));
            return Ok(Some(format!("{path}: the tensor {shown} holds {first}")));
        }
    }
    Ok(None)
}
