//! Matrices of bitsandbytes in 4 bits, nf4 and fp4: `Linear4bit` of bitsandbytes 0.50, QLoRA (arXiv:2305.14314).
//!
//! ```text
//! w = map[code] a        a = absmax[block], or nested_map[absmax[block]] nested_absmax[block / 256] + offset
//! ```
//!
//! Blocks run over the numbers of the matrix row by row, so one may end in the next row. A byte has two codes, the first
//! in its upper half. A checkpoint has, beside `X.weight` (codes) and besides the bias:
//!
//! | `X.weight.` | |
//! |---|---|
//! | `absmax` | f32 for each block, or u8 with double quantisation |
//! | `quant_map` | f32 (16) |
//! | `nested_absmax`, `nested_quant_map` | f32 for each 256 blocks; f32 (256): with double quantisation |
//! | `quant_state.bitsandbytes__nf4`, `..fp4` | JSON: sizes of blocks, shape, offset |

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use serde::Deserialize;

use super::launch::{KernelForm, Size, bytes_of};
use super::part::{self, Parts};
use super::{Decode, Stored, by_blocks, numbers_to_store};
use crate::ops::bytes::{Bytes, Numbers};

/// Codes of 4 bits.
const CODES: usize = 16;

/// Codes of a byte.
const BYTES: usize = 256;

/// Numbers of a block, as bitsandbytes stores by default.
pub const BLOCK: usize = 64;

/// Blocks of a nested block.
pub(super) const NESTED_BLOCK: usize = 256;

/// Largest block that bitsandbytes has.
const LARGEST_BLOCK: usize = 4096;

/// Blocks that a thread stores at least.
const LEAST_BLOCKS: usize = 256;

/// The least divisor of a block: blocks of zeros stay zeros.
const LEAST_ABSMAX: f32 = 1e-38;

/// The numbers that 4 bits stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FourBitCode {
    /// Quantiles of a normal distribution.
    Nf4,
    /// A sign, two bits of exponent, one of mantissa.
    Fp4,
}

impl FourBitCode {
    /// Name as in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }

    /// Returns the numbers by code.
    pub fn map(self) -> [f32; CODES] {
        match self {
            Self::Nf4 => [
                -1.0,
                -0.696_192_8,
                -0.525_073_05,
                -0.394_917_5,
                -0.284_441_38,
                -0.184_773_43,
                -0.091_050_036,
                0.0,
                0.079_580_3,
                0.160_930_2,
                0.246_112_3,
                0.337_915_24,
                0.440_709_83,
                0.562_617,
                0.722_956_84,
                1.0,
            ],
            Self::Fp4 => {
                let magnitudes = [
                    0.0,
                    0.005_208_333_3,
                    0.666_666_7,
                    1.0,
                    0.333_333_34,
                    0.5,
                    0.166_666_67,
                    0.25,
                ];
                std::array::from_fn(|code| match magnitudes.get(code) {
                    Some(magnitude) => *magnitude,
                    None => 0.0 - magnitudes[code - magnitudes.len()], // not -0
                })
            }
        }
    }
}

/// Numbers in codes of 4 bits, in blocks with their largest magnitudes.
#[derive(Clone)]
pub struct FourBit {
    code: FourBitCode,
    /// Two codes a byte.
    pub codes: Bytes,
    /// The number of each code.
    pub map: [f32; CODES],
    /// Largest magnitudes.
    pub absmax: Absmax,
    block: usize,
}

/// The largest magnitude of each block.
#[derive(Clone)]
pub enum Absmax {
    /// As they are.
    Plain(Numbers),
    /// In 8 bits: double quantisation.
    Nested {
        /// A code for each block.
        codes: Bytes,
        /// The number of each code.
        map: Numbers,
        /// The largest magnitude of each nested block.
        absmax: Numbers,
        /// Blocks of a nested block.
        block: usize,
        /// Mean of the magnitudes, which is subtracted before they are stored.
        offset: f32,
    },
}

impl Absmax {
    fn of(&self, block: usize) -> f32 {
        match self {
            Self::Plain(absmax) => absmax[block],
            Self::Nested {
                codes,
                map,
                absmax,
                block: size,
                offset,
            } => map[usize::from(codes[block])] * absmax[block / size] + offset,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Plain(absmax) => size_of_val(&absmax[..]),
            Self::Nested { codes, map, absmax, .. } => codes.len() + size_of_val(&map[..]) + size_of_val(&absmax[..]),
        }
    }
}

/// The JSON beside a matrix. It may have keys that reading does not need.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

impl Decode for FourBit {
    fn name(&self) -> String {
        let nested = match self.absmax {
            Absmax::Plain(_) => "",
            Absmax::Nested { .. } => " with double quantisation",
        };
        format!("bitsandbytes {}{nested}", self.code.name())
    }

    fn bytes(&self) -> usize {
        self.codes.len() + self.absmax.bytes() + size_of_val(&self.map)
    }

    fn decode(&self, first: usize, numbers: &mut [f32]) {
        by_blocks(first, self.block, numbers, |block, at, piece| {
            let absmax = self.absmax.of(block);
            let numbers = self.map.map(|number| number * absmax);
            for (i, number) in (at..).zip(piece) {
                let byte = self.codes[i / 2];
                let code = if i % 2 == 0 { byte >> 4 } else { byte & 0xf };
                *number = numbers[usize::from(code)];
            }
        });
    }

    fn kernel_form(&self) -> KernelForm {
        let (absmax, nested, nested_map, nested_block, offset) = match &self.absmax {
            Absmax::Plain(absmax) => (absmax, None, None, 1, 0.0),
            Absmax::Nested {
                codes,
                map,
                absmax,
                block,
                offset,
            } => (absmax, Some(codes.to_vec()), Some(bytes_of(map)), *block, *offset),
        };
        KernelForm {
            kernel: "decode_four_bit".into(),
            parts: vec![
                Some(self.codes.to_vec()),
                Some(bytes_of(&self.map)),
                Some(bytes_of(absmax)),
                nested,
                nested_map,
            ],
            sizes: vec![
                Size::I32(self.block as i32),
                Size::I32(nested_block as i32),
                Size::F32(offset),
            ],
            run: self.block,
        }
    }

    fn parts(&mut self) -> Vec<&mut Bytes> {
        match &mut self.absmax {
            Absmax::Plain(absmax) => vec![&mut self.codes, &mut absmax.0],
            Absmax::Nested { codes, map, absmax, .. } => vec![&mut self.codes, codes, &mut map.0, &mut absmax.0],
        }
    }
}

/// Returns the shape of the matrix `path`.
///
/// # Errors
/// Fails without a description of it.
pub fn shape(parts: &dyn Parts, path: &str, code: FourBitCode) -> Result<Vec<usize>> {
    Ok(part::json::<QuantState>(parts, &state_name(path, code))?.shape)
}

fn state_name(path: &str, code: FourBitCode) -> String {
    format!("{path}.quant_state.bitsandbytes__{}", code.name())
}

/// Reads the matrix `path`, such as `blocks.0.ff.weight`.
///
/// # Errors
/// Fails for parts that are missing or of another size, and for a matrix of another shape.
pub fn read(
    parts: &dyn Parts,
    path: &str,
    code: FourBitCode,
    shape: (usize, usize),
    device: &Device,
) -> Result<Stored<FourBit>> {
    let of = |name: &str| format!("{path}.{name}");
    let state_name = state_name(path, code);
    let state: QuantState = part::json(parts, &state_name)?;
    if state.shape != [shape.0, shape.1] {
        bail!(
            "{state_name}: the matrix should be {shape:?} by config.json, but is {:?}",
            state.shape
        );
    }
    if state.quant_type != code.name() {
        bail!("{state_name}: the type is '{}' within", state.quant_type);
    }
    let block = checked_block(&state_name, "blocksize", state.blocksize)?;
    let count = part::elements(path, shape)?;
    let blocks = count.div_ceil(block);
    let codes = part::codes(parts, path, None, count.div_ceil(2))?; // of any type: `bnb_4bit_quant_storage`
    let map = part::floats(parts, &of("quant_map"), CODES)?;
    let map = std::array::from_fn(|code| map[code]);
    let absmax = match state.nested_blocksize {
        None => Absmax::Plain(part::floats(parts, &of("absmax"), blocks)?.into()),
        Some(size) => {
            let size = checked_block(&state_name, "nested_blocksize", size)?;
            let Some(offset) = state.nested_offset else {
                bail!("{state_name}: nested_offset is missing");
            };
            Absmax::Nested {
                codes: part::codes(parts, &of("absmax"), Some(Dtype::U8), blocks)?,
                map: part::floats(parts, &of("nested_quant_map"), BYTES)?.into(),
                absmax: part::floats(parts, &of("nested_absmax"), blocks.div_ceil(size))?.into(),
                block: size,
                offset,
            }
        }
    };
    let format = FourBit {
        code,
        codes,
        map,
        absmax,
        block,
    };
    Ok(Stored::new(format, shape, device))
}

fn checked_block(name: &str, key: &str, size: usize) -> Result<usize> {
    if !size.is_power_of_two() || size > LARGEST_BLOCK {
        bail!("{name}: {key} is {size}, but should be a power of two up to {LARGEST_BLOCK}");
    }
    Ok(size)
}

/// Stores a dense matrix in blocks of [`BLOCK`], with double quantisation if `nested`. Codes are bitsandbytes' own: the
/// nearest number to x / absmax, by the midpoints between numbers.
///
/// # Errors
/// Fails for NaN and infinities.
pub fn quantize(dense: &Tensor, code: FourBitCode, nested: bool, device: &Device) -> Result<Stored<FourBit>> {
    let (numbers, shape) = numbers_to_store(dense)?;
    let map = code.map();
    let mut order: Vec<u8> = (0..map.len() as u8).collect();
    order.sort_by(|a, b| map[usize::from(*a)].total_cmp(&map[usize::from(*b)])); // stable: fp4 has 0 twice
    let sorted: Vec<f32> = order.iter().map(|code| map[usize::from(*code)]).collect();
    let (places, absmax) = nearest(&numbers, BLOCK, &sorted);
    let code_of = |place: &u8| order[usize::from(*place)];
    let zero = place_of(0.0, &midpoints(&sorted));
    let codes = places.chunks(2).map(|pair| {
        let second = pair.get(1).unwrap_or(&zero);
        code_of(&pair[0]) << 4 | code_of(second)
    });
    let format = FourBit {
        code,
        codes: codes.collect::<Vec<u8>>().into(),
        map,
        absmax: if nested {
            nest(&absmax)
        } else {
            Absmax::Plain(absmax.into())
        },
        block: BLOCK,
    };
    Ok(Stored::new(format, shape, device))
}

/// Returns the bytes of `count` numbers with double quantisation.
pub(super) fn nested_bytes(count: u64) -> u64 {
    let blocks = count.div_ceil(BLOCK as u64);
    let tables = (CODES + BYTES) as u64;
    let numbers = blocks.div_ceil(NESTED_BLOCK as u64) + tables;
    count.div_ceil(2) + blocks + numbers * size_of::<f32>() as u64
}

/// Stores the largest magnitudes in 8 bits.
fn nest(absmax: &[f32]) -> Absmax {
    let sum: f64 = absmax.iter().map(|x| f64::from(*x)).sum();
    let offset = (sum / absmax.len().max(1) as f64) as f32;
    let centred: Vec<f32> = absmax.iter().map(|x| x - offset).collect();
    let map = dynamic_map();
    let (codes, nested) = nearest(&centred, NESTED_BLOCK, &map);
    Absmax::Nested {
        codes: codes.into(),
        map: map.into(),
        absmax: nested.into(),
        block: NESTED_BLOCK,
        offset,
    }
}

fn midpoints(sorted: &[f32]) -> Vec<f32> {
    sorted.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect()
}

/// Counts the midpoints below x: its place among the sorted numbers.
fn place_of(x: f32, midpoints: &[f32]) -> u8 {
    midpoints.partition_point(|middle| x > *middle) as u8 // at most 255
}

/// Returns, for each number, the place of the nearest one of `sorted` times its block's largest magnitude; and those.
fn nearest(numbers: &[f32], block: usize, sorted: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let midpoints = midpoints(sorted);
    let mut places = vec![0; numbers.len()];
    let blocks = numbers.par_chunks(block).zip(places.par_chunks_mut(block));
    let absmax = blocks.with_min_len(LEAST_BLOCKS).map(|(numbers, places)| {
        let largest = numbers.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let divisor = largest.max(LEAST_ABSMAX);
        // As bitsandbytes computes it: by the inverse, but in the last block, which is not full, by a division.
        let inverse = 1.0 / divisor;
        let whole = numbers.len() == block;
        for (place, x) in places.iter_mut().zip(numbers) {
            let scaled = if whole { x * inverse } else { x / divisor };
            *place = place_of(scaled.clamp(-1.0, 1.0), &midpoints);
        }
        if whole { largest } else { divisor }
    });
    let absmax = absmax.collect();
    (places, absmax)
}

/// Numbers of the signed dynamic type of 8 bits (arXiv:1511.04561), sorted: for e from 0 to 6, the midpoints of 2^e equal
/// parts of [0.1, 1], times 10^(e - 6), with both signs; 0 and 1.
pub(super) fn dynamic_map() -> Vec<f32> {
    let mut numbers = vec![0.0, 1.0];
    for exponent in 0..7 {
        let parts = 1 << exponent;
        let bounds: Vec<f32> = (0..=parts).map(|i| linspace(i, parts)).collect();
        let factor = 10f64.powi(exponent - 6) as f32;
        for pair in bounds.windows(2) {
            let middle = factor * ((pair[0] + pair[1]) / 2.0);
            numbers.extend([middle, -middle]);
        }
    }
    numbers.sort_by(f32::total_cmp);
    numbers
}

/// Number i of `parts` + 1 from 0.1 to 1 at equal distances, as torch computes it: from both ends, rounded once.
fn linspace(i: usize, parts: usize) -> f32 {
    let step = (1.0 - 0.1) / parts as f32;
    match i < parts.div_ceil(2) {
        true => step.mul_add(i as f32, 0.1),
        false => step.mul_add(-((parts - i) as f32), 1.0),
    }
}
