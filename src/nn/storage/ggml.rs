//! Matrices in the types of GGML, which GGUF files hold: ggml-common.h and ggml-quants.c of llama.cpp, gguf-py 0.19.
//!
//! A row is whole blocks, of 32 numbers (`legacy`) or of 256 (`k_quants`). Decoding is in f32, in gguf-py's order of
//! operations. Blocks are made by candle, whose bytes are gguf-py's for Q8_0 and the types of 32 numbers; gguf-py makes
//! none of the others.

mod k_quants;
mod legacy;

use std::fmt;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use super::launch::KernelForm;
use super::{CHUNK, Decode, Stored, numbers_to_store, part};
use crate::ops::bytes::Bytes;

/// Numbers of the largest block.
const MOST_BLOCK: usize = k_quants::BLOCK;

/// A type of GGML.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgmlType {
    /// f32
    F32,
    /// f16
    F16,
    /// bf16
    BF16,
    /// 4 bits, a scale
    Q4_0,
    /// 4 bits, a scale and a least number
    Q4_1,
    /// 5 bits, a scale
    Q5_0,
    /// 5 bits, a scale and a least number
    Q5_1,
    /// 8 bits, a scale
    Q8_0,
    /// 2 bits, scales and least numbers in 4 bits
    Q2K,
    /// 3 bits, scales in 6 bits
    Q3K,
    /// 4 bits, scales and least numbers in 6 bits
    Q4K,
    /// 5 bits, scales and least numbers in 6 bits
    Q5K,
    /// 6 bits, scales in 8 bits
    Q6K,
}

impl GgmlType {
    /// Every type that is read.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Name, as GGML has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Returns the number of the type in files.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::BF16 => 30,
        }
    }

    /// Returns the type of this number in files; None for types that are not read.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.id() == id)
    }

    /// Returns the numbers of a block.
    pub fn block(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => legacy::BLOCK,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => k_quants::BLOCK,
        }
    }

    /// Returns the bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Returns the bytes of this many numbers; None where they are no whole blocks, or too many.
    pub fn bytes(self, numbers: usize) -> Option<usize> {
        if !numbers.is_multiple_of(self.block()) {
            return None;
        }
        (numbers / self.block()).checked_mul(self.block_bytes())
    }

    /// Returns the type for rows of this many numbers: itself, or one of more bits where they are no whole blocks.
    pub fn fallback(self, features: usize) -> Self {
        let smaller = match self {
            _ if features.is_multiple_of(self.block()) => return self,
            Self::Q2K | Self::Q3K => Self::Q4_0,
            Self::Q4K => Self::Q5_0,
            Self::Q5K => Self::Q5_1,
            Self::Q6K => Self::Q8_0,
            _ => return Self::F16,
        };
        smaller.fallback(features)
    }

    /// Decodes a block into as many numbers.
    fn decode(self, block: &[u8], numbers: &mut [f32]) {
        match self {
            Self::F32 => numbers[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Self::F16 => numbers[0] = f16_at(block, 0),
            Self::BF16 => numbers[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            Self::Q4_0 => legacy::q4_0(block, numbers),
            Self::Q4_1 => legacy::q4_1(block, numbers),
            Self::Q5_0 => legacy::q5_0(block, numbers),
            Self::Q5_1 => legacy::q5_1(block, numbers),
            Self::Q8_0 => legacy::q8_0(block, numbers),
            Self::Q2K => k_quants::q2_k(block, numbers),
            Self::Q3K => k_quants::q3_k(block, numbers),
            Self::Q4K => k_quants::q4_k(block, numbers),
            Self::Q5K => k_quants::q5_k(block, numbers),
            Self::Q6K => k_quants::q6_k(block, numbers),
        }
    }

    fn of_candle(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::BF16 => GgmlDType::BF16,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q2K => GgmlDType::Q2K,
            Self::Q3K => GgmlDType::Q3K,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the f16 at a byte of a block.
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Numbers in blocks of a type.
#[derive(Clone)]
pub struct Blocks {
    kind: GgmlType,
    /// Blocks, one after the other.
    pub bytes: Bytes,
}

impl Decode for Blocks {
    fn name(&self) -> String {
        format!("GGUF {}", self.kind)
    }

    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn decode(&self, first: usize, numbers: &mut [f32]) {
        let (size, bytes) = (self.kind.block(), self.kind.block_bytes());
        let blocks = self.bytes[first / size * bytes..].chunks_exact(bytes);
        for (numbers, block) in numbers.chunks_mut(size).zip(blocks) {
            self.kind.decode(block, numbers);
        }
    }

    fn kernel_form(&self) -> KernelForm {
        KernelForm {
            kernel: format!("decode_{}", self.kind.name().to_lowercase()),
            parts: vec![Some(self.bytes.to_vec())],
            sizes: Vec::new(),
            run: match self.kind.block() {
                1 => MOST_BLOCK, // without scales
                numbers => numbers,
            },
        }
    }

    fn parts(&mut self) -> Vec<&mut Bytes> {
        vec![&mut self.bytes]
    }
}

/// Matrix of these blocks; `name` is for messages.
///
/// # Errors
/// Fails where rows are no whole blocks, and for another number of bytes.
pub fn matrix(
    name: &str,
    kind: GgmlType,
    bytes: impl Into<Bytes>,
    shape: (usize, usize),
    device: &Device,
) -> Result<Stored<Blocks>> {
    let bytes = bytes.into();
    let count = part::elements(name, shape)?;
    if !shape.1.is_multiple_of(kind.block()) || kind.bytes(count) != Some(bytes.len()) {
        bail!(
            "{name}: a matrix {shape:?} in {kind}, in blocks of {}, is not {} bytes",
            kind.block(),
            bytes.len()
        );
    }
    Ok(Stored::new(Blocks { kind, bytes }, shape, device))
}

/// Stores a dense matrix in a type.
///
/// # Errors
/// Fails for NaN, infinities, numbers too large for f16 where scales are in it, and rows that are no whole blocks.
pub fn quantize(dense: &Tensor, kind: GgmlType, device: &Device) -> Result<Stored<Blocks>> {
    let (numbers, shape) = numbers_to_store(dense)?;
    if !shape.1.is_multiple_of(kind.block()) {
        bail!(
            "a matrix {shape:?} cannot be stored in {kind}: its rows are no multiple of {}",
            kind.block()
        );
    }
    let largest = numbers.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    if !matches!(kind, GgmlType::F32 | GgmlType::BF16) && largest > f16::MAX.to_f32() {
        bail!("a matrix {shape:?} with {largest} cannot be stored in {kind}: its scales are f16");
    }
    if numbers.is_empty() {
        return matrix("a matrix", kind, Vec::new(), shape, device);
    }
    // Rows do not depend on each other.
    let rows = (CHUNK / shape.1).max(1);
    let stored = |numbers: &[f32]| {
        let rows = Tensor::from_slice(numbers, (numbers.len() / shape.1, shape.1), &Device::Cpu)?;
        Ok(QTensor::quantize(&rows, kind.of_candle())?.data()?.into_owned())
    };
    let pieces: Vec<Vec<u8>> = numbers.par_chunks(rows * shape.1).map(stored).collect::<Result<_>>()?;
    matrix("a matrix", kind, pieces.concat(), shape, device)
}
