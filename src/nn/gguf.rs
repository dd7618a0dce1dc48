//! GGUF files: a header of metadata and tensors, and the tensors' blocks (ggml's docs/gguf.md, versions 2 and 3).
//!
//! ```text
//! "GGUF", version u32, tensors u64, pairs u64
//! pair:    key, type u32, value           a string is its length u64 and bytes, an array a type u32, a length u64, values
//! tensor:  name, sides u32, u64 each, type u32, offset u64
//! blocks:  from the next multiple of general.alignment (32) on
//! ```
//!
//! Sides are in the reverse of torch's order. Numbers are checked against the file's length before anything is kept: a
//! header never takes more memory than the file has bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device, Tensor};

use super::storage::Stored;
use super::storage::ggml::{self, Blocks, GgmlType};
use crate::ops::bytes::{Bytes, Origin};
use crate::ops::stored::StoredMatrix;

mod reader;
mod writer;

use reader::Reader;
pub use writer::{GgufTensor, GgufWriter};

/// First bytes of a file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";

/// Bytes of the shortest pair: a key without letters, a type, a byte.
const SHORTEST_PAIR: u64 = 13;

/// Bytes of the shortest tensor: a name without letters, no sides, a type, an offset.
const SHORTEST_TENSOR: u64 = 24;

/// Most sides of a tensor: one more than the convolutions of video models have.
const MOST_SIDES: u32 = 6;

/// Where blocks begin if the file does not say.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The largest alignment that is believed.
const LARGEST_ALIGNMENT: u64 = 1 << 20;

/// Tensors of other types that are named.
const SHOWN: usize = 8;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Whole number without a sign.
    Unsigned(u64),
    /// Whole number with a sign.
    Signed(i64),
    /// Number with a point.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// Length of an array, whose values are not kept.
    Array(u64),
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Type of its blocks.
    pub kind: GgmlType,
    /// Sides in torch's order.
    pub shape: Vec<usize>,
    /// Place of its first byte in the file.
    pub start: u64,
    /// Bytes of its blocks.
    pub bytes: usize,
}

impl Entry {
    /// Returns true for this shape. GGML's tools do not write the sides of 1 at a shape's front: the table (1, 6, D) is
    /// (6, D) in a file that was quantised by llama.cpp.
    pub fn is(&self, shape: &[usize]) -> bool {
        behind_ones(&self.shape) == behind_ones(shape)
    }

    /// Returns its length along the first side; 1 for a single number.
    fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Returns true for a matrix in few bits.
    pub fn is_stored_matrix(&self) -> bool {
        self.shape.len() == 2 && self.kind.block() > 1
    }
}

fn behind_ones(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|side| **side == 1).count();
    &shape[ones..]
}

/// Metadata and tensors of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Metadata, by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors, by name.
    pub tensors: BTreeMap<String, Entry>,
}

/// An open file.
pub struct GgufFile {
    path: PathBuf,
    file: Mutex<File>,
    header: Header,
}

impl Header {
    /// Reads the header of a file of `length` bytes.
    ///
    /// # Errors
    /// Fails for other files and versions, numbers beyond the file, and types that are not read.
    pub fn read(file: impl Read, length: u64) -> anyhow::Result<Self> {
        let mut reader = Reader::new(file, length);
        let magic = reader.bytes::<4>()?;
        ensure!(magic == MAGIC, "not a GGUF file: it begins with {magic:02x?}");
        let version = reader.u32()?;
        ensure!(
            matches!(version, 2 | 3),
            "GGUF version {version} is not read, only 2 and 3{}",
            if version.swap_bytes() <= 3 {
                "; the file is big-endian"
            } else {
                ""
            }
        );
        let tensors = reader.count("tensors", SHORTEST_TENSOR)?;
        let pairs = reader.count("pairs of metadata", SHORTEST_PAIR)?;
        let mut metadata = BTreeMap::new();
        for i in 0..pairs {
            let key = reader.string().with_context(|| format!("key {i} of the metadata"))?;
            let value = reader.value().with_context(|| format!("the metadata's {key}"))?;
            let twice = metadata.insert(key.clone(), value).is_some();
            ensure!(!twice, "the metadata has {key} twice");
        }
        let mut described = Vec::new();
        for i in 0..tensors {
            let name = reader.string().with_context(|| format!("name of tensor {i}"))?;
            described.push(Described::read(name, &mut reader)?);
        }
        let alignment = alignment(&metadata)?;
        let start = reader.at().next_multiple_of(alignment);
        Ok(Self {
            metadata,
            tensors: entries(described, start, alignment, length)?,
        })
    }
}

/// A tensor as the header describes it.
struct Described {
    name: String,
    /// Sides in torch's order.
    shape: Vec<usize>,
    kind: u32,
    offset: u64,
}

impl Described {
    fn read<R: Read>(name: String, reader: &mut Reader<R>) -> anyhow::Result<Self> {
        let within = || format!("the tensor {name}");
        let sides = reader.u32().with_context(within)?;
        ensure!(
            sides <= MOST_SIDES,
            "the tensor {name} has {sides} sides, more than {MOST_SIDES}"
        );
        let mut shape = Vec::new();
        for _ in 0..sides {
            let side = reader.u64().with_context(within)?;
            shape.push(usize::try_from(side).with_context(|| format!("the tensor {name} has a side of {side}"))?);
        }
        shape.reverse();
        let (kind, offset) = (reader.u32().with_context(within)?, reader.u64().with_context(within)?);
        Ok(Self {
            name,
            shape,
            kind,
            offset,
        })
    }

    fn entry(&self, kind: GgmlType, start: u64, alignment: u64, length: u64) -> anyhow::Result<Entry> {
        let Self { name, shape, .. } = self;
        let elements = shape.iter().try_fold(1usize, |all, side| all.checked_mul(*side));
        let elements = elements.with_context(|| format!("the tensor {name} {shape:?} has too many elements"))?;
        let row = shape.last().copied().unwrap_or(1);
        ensure!(
            row.is_multiple_of(kind.block()),
            "the tensor {name} {shape:?}: its rows are no multiple of {kind}'s blocks of {}",
            kind.block()
        );
        let bytes = kind
            .bytes(elements)
            .with_context(|| format!("the tensor {name} {shape:?} in {kind} has too many bytes"))?;
        ensure!(
            self.offset.is_multiple_of(alignment),
            "the tensor {name} begins at {}, no multiple of the alignment {alignment}",
            self.offset
        );
        let first = start.checked_add(self.offset);
        let end = first.and_then(|first| first.checked_add(bytes as u64));
        match (first, end) {
            (Some(first), Some(end)) if end <= length => Ok(Entry {
                kind,
                shape: shape.clone(),
                start: first,
                bytes,
            }),
            _ => bail!(
                "the tensor {name}, {bytes} bytes at {start} + {}, runs beyond the file of {length} bytes; fetch it again",
                self.offset
            ),
        }
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> anyhow::Result<u64> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(size)) if size.is_power_of_two() && *size <= LARGEST_ALIGNMENT => Ok(*size),
        Some(other) => bail!("general.alignment is {other:?}, not a power of two up to {LARGEST_ALIGNMENT}"),
    }
}

/// Checks all tensors.
fn entries(
    described: Vec<Described>,
    start: u64,
    alignment: u64,
    length: u64,
) -> anyhow::Result<BTreeMap<String, Entry>> {
    let (mut entries, mut others) = (BTreeMap::new(), Vec::new());
    for tensor in described {
        let Some(kind) = GgmlType::from_id(tensor.kind) else {
            others.push(format!("\n  {} in {}", tensor.name, unread_type(tensor.kind)));
            continue;
        };
        let entry = tensor.entry(kind, start, alignment, length)?;
        ensure!(
            entries.insert(tensor.name.clone(), entry).is_none(),
            "the tensor {} is there twice",
            tensor.name
        );
    }
    ensure!(
        others.is_empty(),
        "{} tensors are in types that are not read (read are {}):{}{}",
        others.len(),
        GgmlType::ALL.map(GgmlType::name).join(", "),
        others.iter().take(SHOWN).map(String::as_str).collect::<String>(),
        if others.len() > SHOWN { "\n  ..." } else { "" }
    );
    Ok(entries)
}

/// Name of a type that is not read.
fn unread_type(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("type {id}"),
    };
    format!("{name} (type {id})")
}

impl GgufFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// Same as [`Header::read`]; with the file's name.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let named = || path.display().to_string();
        let file = File::open(path).with_context(named)?;
        let length = file.metadata().with_context(named)?.len();
        let header = Header::read(BufReader::new(&file), length).with_context(named)?;
        Ok(Self {
            path: path.into(),
            file: Mutex::new(file),
            header,
        })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what the file has.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the matrix `name` as it is stored.
    ///
    /// # Errors
    /// Fails if it is missing or of another shape.
    pub fn matrix(&self, name: &str, shape: (usize, usize), device: &Device) -> anyhow::Result<Stored<Blocks>> {
        self.entry(name, &[shape.0, shape.1])?;
        self.matrix_rows(name, 0..shape.0, shape.1, device)
    }

    /// Reads rows of the matrix `name` as they are stored; a row has so many `features`.
    ///
    /// # Errors
    /// Fails if it is missing, has other rows, or not these.
    pub fn matrix_rows(
        &self,
        name: &str,
        rows: Range<usize>,
        features: usize,
        device: &Device,
    ) -> anyhow::Result<Stored<Blocks>> {
        let (kind, shape) = (self.described(name)?.kind, (rows.len(), features));
        Ok(ggml::matrix(name, kind, self.blocks(name, rows)?, shape, device)?)
    }

    /// Reads the tensor `name`, dense.
    ///
    /// # Errors
    /// Fails if it is missing or of another shape.
    pub fn tensor(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> anyhow::Result<Tensor> {
        let entry = self.entry(name, shape)?;
        self.dense(name, 0..entry.rows(), shape, dtype, device)
    }

    /// Reads rows of the tensor `name`, dense.
    ///
    /// # Errors
    /// Fails if it is missing, or does not have these rows.
    pub fn tensor_rows(&self, name: &str, rows: Range<usize>, dtype: DType, device: &Device) -> anyhow::Result<Tensor> {
        let sides = self.described(name)?.shape.iter().skip(1).copied();
        let shape: Vec<usize> = [rows.len()].into_iter().chain(sides).collect();
        self.dense(name, rows, &shape, dtype, device)
    }

    /// Reads rows of a tensor, which have this shape.
    fn dense(
        &self,
        name: &str,
        rows: Range<usize>,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> anyhow::Result<Tensor> {
        let features = shape.last().copied().unwrap_or(1);
        let count = shape.iter().rev().skip(1).product();
        let (kind, blocks) = (self.described(name)?.kind, self.blocks(name, rows)?);
        let matrix = ggml::matrix(name, kind, blocks, (count, features), device)?;
        Ok(matrix.rows(0..count, dtype)?.reshape(shape)?)
    }

    fn described(&self, name: &str) -> anyhow::Result<&Entry> {
        let entry = self.header.tensors.get(name);
        entry.with_context(|| format!("{}: the tensor {name} is missing", self.path.display()))
    }

    fn entry(&self, name: &str, shape: &[usize]) -> anyhow::Result<&Entry> {
        let file = self.path.display();
        let Some(entry) = self.header.tensors.get(name) else {
            bail!("{file}: the tensor {name} {shape:?} is missing");
        };
        ensure!(
            entry.is(shape),
            "{file}: the tensor {name} should be {shape:?}, but is {:?}",
            entry.shape
        );
        Ok(entry)
    }

    /// Reads the blocks of rows of a tensor.
    fn blocks(&self, name: &str, rows: Range<usize>) -> anyhow::Result<Bytes> {
        let entry = self.described(name)?;
        let all = entry.rows();
        ensure!(
            rows.start <= rows.end && rows.end <= all,
            "{}: rows {rows:?} of the tensor {name}, which has {all}",
            self.path.display()
        );
        let row = entry.bytes / all.max(1);
        let start = entry.start + (rows.start * row) as u64;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = vec![0; rows.len() * row];
        file.seek(SeekFrom::Start(start))
            .and_then(|_| file.read_exact(&mut bytes))
            .with_context(|| format!("{}: reading the tensor {name}", self.path.display()))?;
        let origin = Origin {
            path: self.path.as_path().into(),
            offset: start,
        };
        Ok(Bytes::from(bytes).with_origin(Some(origin)))
    }
}
