//! Merges adapters into a checkpoint: `W + strength (scale B A + D)`, shard by shard.
//!
//! A shard's header is copied unchanged, so names, shapes, order and number formats stay. Tensors are streamed one
//! after the other; those that adapters change are processed a few rows at a time, in f32, and rounded once. Host
//! memory holds one tensor that is only copied, or the current rows, and the adapters.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::adapters::{AdapterFile, Change, changes};
use crate::disk::TempFile;
use crate::finite;
use crate::hub::layout::{Kind, WeightFile};
use crate::magic;
use crate::nn::WeightFolder;

pub mod anew;

/// Upper limit of safetensors for a header.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// Bytes that are read at once.
const CHUNK: usize = 32 << 20;

/// A folder of weights, of which only the headers were read.
#[derive(Debug)]
pub struct Folder {
    shards: Vec<Shard>,
    /// Variant of the weights.
    variant: Option<String>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    /// Header with its length before it.
    header: Vec<u8>,
    metadata: Metadata,
}

impl Folder {
    /// # Errors
    /// Fails without safetensors, for a missing shard, and for an invalid header.
    pub fn open(folder: impl Into<WeightFolder>) -> anyhow::Result<Self> {
        let folder: WeightFolder = folder.into();
        let files = folder.files()?;
        let shards = files.paths.into_iter().map(|path| {
            let shown = path.display().to_string();
            Shard::open(path).with_context(|| shown)
        });
        Ok(Self {
            shards: shards.collect::<anyhow::Result<_>>()?,
            variant: files.variant,
        })
    }

    /// Returns why a change of the layer or parameter `name` does not fit; None if it does.
    pub fn misfit(&self, name: &str, change: Change) -> Option<String> {
        let parameter = change.parameter(name);
        match self.shards.iter().find_map(|shard| shard.metadata.info(&parameter)) {
            Some(info) => change.misfit(&info.shape),
            None => Some(change.unmatched_layer().into()),
        }
    }

    /// Checks that every adapter fits a layer.
    ///
    /// # Errors
    /// Names the first that does not, by file.
    pub fn check(&self, files: &[AdapterFile]) -> anyhow::Result<()> {
        for file in files {
            for (name, change) in changes(&file.layers, &file.deltas) {
                if let Some(why) = self.misfit(name, change) {
                    bail!("{}: {} {name} {why}", file.path.display(), change.noun());
                }
            }
        }
        Ok(())
    }

    /// Writes all shards with the adapters merged to a folder, under their own names.
    ///
    /// # Errors
    /// Same as [`check`](Self::check), before anything is written; also for read and write errors.
    pub fn merge(&self, files: &[AdapterFile], to: &Path) -> anyhow::Result<()> {
        self.check(files)?;
        for shard in &self.shards {
            let name = shard.path.file_name().context("a shard has a name")?;
            let merged = shard.merge(files, &to.join(name));
            merged.with_context(|| shard.path.display().to_string())?;
        }
        Ok(())
    }

    /// Checks for the name of an index of other weights.
    pub fn is_other_index(&self, name: &str) -> bool {
        WeightFile::of(name).is_some_and(|file| file.kind == Kind::Index && file.variant != self.variant.as_deref())
    }

    /// Checks that this file is one of the shards.
    pub fn holds(&self, path: &Path) -> bool {
        self.shards.iter().any(|shard| shard.path == path)
    }
}

impl Shard {
    fn open(path: PathBuf) -> anyhow::Result<Self> {
        magic::refuse(&path)?;
        let mut file = File::open(&path)?;
        let size = file.metadata()?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).context("not a safetensors file")?;
        let bytes = u64::from_le_bytes(length);
        ensure!(
            bytes <= MAX_HEADER_BYTES && bytes + 8 <= size,
            "not a safetensors file: a header of {bytes} bytes in {size}"
        );
        let mut header = length.to_vec();
        file.take(bytes).read_to_end(&mut header)?;
        let metadata: Metadata = serde_json::from_slice(&header[8..]).context("not a safetensors header")?;
        ensure!(
            header.len() as u64 + metadata.data_len() as u64 == size,
            "the header declares {} bytes, but the file has {size}; fetch it again",
            header.len() + metadata.data_len()
        );
        Ok(Self { path, header, metadata })
    }

    fn merge(&self, files: &[AdapterFile], to: &Path) -> anyhow::Result<()> {
        let mut from = File::open(&self.path)?;
        from.seek(SeekFrom::Start(self.header.len() as u64))?;
        let mut out = TempFile::of(to)?;
        out.write(&self.header)?;
        for name in self.metadata.offset_keys() {
            let info = self.metadata.info(&name).context("a tensor of the header")?;
            let mut deltas = Vec::new();
            for file in files {
                deltas.extend(Delta::of(file, &name, &info.shape)?);
            }
            stream(&mut from, info, &deltas, &mut out).with_context(|| name.clone())?;
        }
        Ok(out.keep()?)
    }
}

/// Copies one tensor, adding its changes.
fn stream(from: &mut File, info: &TensorInfo, deltas: &[Delta], out: &mut TempFile) -> anyhow::Result<()> {
    let (start, end) = info.data_offsets;
    let bytes = end - start;
    let (piece, columns) = match (rows_of(&info.shape), deltas) {
        ((rows, columns), [_, ..]) if rows > 0 => {
            let row = bytes / rows;
            (row * (CHUNK / row.max(1)).max(1), columns)
        }
        _ => (CHUNK, 0),
    };
    let (mut done, mut buffer) = (0, Vec::new());
    while done < bytes {
        buffer.resize(piece.min(bytes - done), 0);
        from.read_exact(&mut buffer)?;
        if !deltas.is_empty() {
            let row = columns * info.dtype.bitsize() / 8;
            buffer = add(&buffer, info.dtype, (done / row, columns), deltas)?;
        }
        out.write(&buffer)?;
        done += buffer.len();
    }
    Ok(())
}

/// Returns a shape as rows and columns: all axes after the first are a row.
fn rows_of(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [rows, row @ ..] => (*rows, row.iter().product()),
    }
}

/// Adds the adapters to some rows of a weight, from row `first` on.
fn add(bytes: &[u8], dtype: Dtype, (first, columns): (usize, usize), deltas: &[Delta]) -> anyhow::Result<Vec<u8>> {
    let dtype = match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => bail!("a weight in {other:?} cannot take an adapter; merge into the checkpoint in bf16 or f32"),
    };
    let rows = bytes.len() / dtype.size_in_bytes() / columns;
    let weight = Tensor::from_raw_buffer(bytes, dtype, &[rows, columns], &Device::Cpu)?;
    let mut sum = weight.to_dtype(DType::F32)?; // (rows, in)
    for delta in deltas {
        sum = (sum + delta.rows(first, rows)?)?;
    }
    let sum = sum.to_dtype(dtype)?;
    // Finite rows must stay finite: the result may replace a good file.
    if let Some(found) = finite::first(&sum)?
        && finite::first(&weight)?.is_none()
    {
        bail!("with the adapters it would hold {found}; take a lower strength");
    }
    Ok(safetensors::View::data(&sum).into_owned())
}

/// Change of a tensor by one file, in f32.
enum Delta {
    LoraLayer {
        a: Tensor, // (rank, in)
        b: Tensor, // (out, rank), scaled
    },
    Whole(Tensor), // (rows, columns)
}

impl Delta {
    /// Returns all changes of the parameter `name` by `file`.
    fn of(file: &AdapterFile, name: &str, shape: &[usize]) -> candle_core::Result<Vec<Self>> {
        let mut deltas = Vec::new();
        if let Some(adapter) = name.strip_suffix(".weight").and_then(|layer| file.layers.get(layer)) {
            let (a, b) = adapter.matrices()?;
            deltas.push(Self::LoraLayer {
                a: a.to_dtype(DType::F32)?,
                b: (b.to_dtype(DType::F32)? * (adapter.scale() * file.strength))?,
            });
        }
        if let Some(delta) = file.deltas.get(name) {
            let delta = (delta.to_dtype(DType::F32)? * file.strength)?;
            deltas.push(Self::Whole(delta.reshape(rows_of(shape))?));
        }
        Ok(deltas)
    }

    /// Returns some rows of it, from row `first` on.
    fn rows(&self, first: usize, rows: usize) -> candle_core::Result<Tensor> {
        match self {
            Self::LoraLayer { a, b } => b.narrow(0, first, rows)?.matmul(a),
            Self::Whole(delta) => delta.narrow(0, first, rows),
        }
    }
}
