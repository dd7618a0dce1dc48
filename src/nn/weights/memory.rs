//! Bytes that the tensors of a checkpoint take in memory, before they are read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::DType;
use indicatif::BinaryBytes;

use super::{WeightSource, Weights};
use crate::disk::space::{self, NotEnoughSpace};
use crate::nn::checkpoint::{Checkpoint, Size};
use crate::nn::residency::Residency;
use crate::nn::{ring, stream};
use crate::process::memory::{self, TooLittle};

/// Bytes of a model's tensors in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// Bytes of those that are always there.
    pub whole: u64,
    /// Bytes of those of blocks that may be lent.
    pub lent: u64,
    /// Bytes of the largest block.
    pub largest: u64,
}

impl WeightBytes {
    /// Returns the most bytes of streamed blocks that lie in files where others wait in this much main memory, as for a GPU;
    /// each of the ranks has its part.
    pub fn filed(&self, ranks: usize, room: u64) -> u64 {
        let ranks = ranks as u64;
        match self.lent.div_ceil(ranks) {
            lent if lent <= room => 0,
            // A block that does not fit leaves less than itself free.
            lent => lent.min((lent - room).saturating_add(self.largest.div_ceil(ranks))),
        }
    }
}

impl Weights {
    /// Checks that main memory is large enough for all tensors except those whose names begin with one of `ignored`, and
    /// for as much of lent ones as is always here. On another device they only pass through.
    ///
    /// # Errors
    /// [`TooLittle`]: the needed and the free bytes, and the number format that would fit.
    pub fn ensure_memory(&self, ignored: &[&str]) -> std::result::Result<(), TooLittle> {
        let in_memory = match &self.source {
            WeightSource::Headers(headers) => headers.in_memory && !self.outlines,
            _ => self.device.is_cpu(),
        };
        if self.checkpoint().is_none() || !in_memory {
            return Ok(());
        }
        let bytes = |dtype: DType| {
            let WeightBytes { whole, lent, .. } = self.bytes_as(dtype, ignored);
            whole.saturating_add((lent as f64 * self.residency.resident_share()) as u64)
        };
        let needed = bytes(self.dtype);
        match memory::most() {
            Some(free) if free.bytes < needed => Err(TooLittle {
                what: format!("{} as {}", self.source_path().display(), self.dtype.as_str()),
                needed,
                free,
                instead: (bytes(DType::BF16) < free.bytes.min(needed)).then(|| {
                    format!(
                        "model.dtype: bf16 takes {}, which fits",
                        BinaryBytes(bytes(DType::BF16))
                    )
                }),
            }),
            _ => Ok(()),
        }
    }

    /// Checks that the disk is large enough for streamed matrices that no file has as they are computed with, but for those that
    /// wait in main memory for a GPU. Those that adapters are merged into are not counted.
    ///
    /// # Errors
    /// [`NotEnoughSpace`]: the folder, the needed and the free bytes, and how to name another folder.
    pub fn ensure_space(&self) -> std::result::Result<(), NotEnoughSpace> {
        let is_streamed = matches!(self.residency, Residency::Streamed(_) | Residency::StreamedShards(..));
        if !is_streamed || self.outlines {
            return Ok(());
        }
        let mut needed = self.unfiled_bytes();
        if let Some(room) = ring::main_memory_room().filter(|_| !self.device.is_cpu()) {
            let blocks = self.needed_bytes(&[]);
            needed = needed.min(blocks.filed(self.residency.ranks(), room));
        }
        let what = || {
            format!(
                "a file for the blocks of {}, which are streamed (TMPDIR names another folder, --set model.offload=none needs none)",
                self.source_path().display()
            )
        };
        match needed {
            0 => Ok(()),
            _ => space::ensure(&stream::own_folder(), needed, what),
        }
    }

    /// Returns the bytes of the matrices of blocks that neither the checkpoint nor the cache has as they are computed with.
    fn unfiled_bytes(&self) -> u64 {
        let checkpoint = self.checkpoint().into_iter();
        let sizes = checkpoint.flat_map(|checkpoint| checkpoint.sizes().map(move |size| (checkpoint, size)));
        let bytes = sizes.map(|(checkpoint, (name, size))| match size {
            Size::Dense(shape) if shape.len() == 2 && block_of(name).is_some() => {
                let quantized = self.quantized_bytes(name, &shape);
                match quantized {
                    Some(_) if self.quantized_cache.is_some() => 0,
                    Some(bytes) => bytes,
                    None => match &self.residency {
                        Residency::StreamedShards(ranks, _) => {
                            dense_bytes(&shape, self.dtype).div_ceil(ranks.world_size() as u64)
                        }
                        _ if checkpoint.origin_as(name, self.dtype).is_some() => 0,
                        _ => dense_bytes(&shape, self.dtype),
                    },
                }
            }
            Size::Dense(_) | Size::Stored(_) => 0,
        });
        bytes.fold(0, u64::saturating_add)
    }

    fn source_path(&self) -> PathBuf {
        let folder = self
            .checkpoint()
            .map(|checkpoint| checkpoint.folder.source().to_path_buf());
        folder.unwrap_or_default()
    }

    /// Returns the bytes in memory of all tensors, in their forms, except those whose names begin with one of `ignored`;
    /// none without a checkpoint.
    pub fn needed_bytes(&self, ignored: &[&str]) -> WeightBytes {
        self.bytes_as(self.dtype, ignored)
    }

    fn bytes_as(&self, dtype: DType, ignored: &[&str]) -> WeightBytes {
        let (mut sums, mut blocks) = (WeightBytes::default(), BTreeMap::new());
        let sizes = self.checkpoint().map(Checkpoint::sizes).into_iter().flatten();
        for (name, size) in sizes.filter(|(name, _)| !ignored.iter().any(|prefix| name.starts_with(prefix))) {
            let (bytes, is_matrix, is_dense) = match size {
                Size::Stored(bytes) => (bytes, true, false),
                Size::Dense(shape) => match self.quantized_bytes(name, &shape) {
                    Some(bytes) => (bytes, true, false),
                    None => (dense_bytes(&shape, dtype), shape.len() == 2, true),
                },
            };
            let block = block_of(name).filter(|_| is_matrix);
            let is_lent = match self.residency {
                Residency::Sharded(_) => is_dense,
                Residency::Streamed(_) | Residency::StreamedShards(..) | Residency::Whole => block.is_some(),
            };
            let sum = if is_lent { &mut sums.lent } else { &mut sums.whole };
            *sum = sum.saturating_add(bytes);
            if let Some(block) = block {
                let sum: &mut u64 = blocks.entry(block).or_default();
                *sum = sum.saturating_add(bytes);
            }
        }
        sums.largest = blocks.into_values().max().unwrap_or(0);
        sums
    }
}

/// Returns the path of the numbered block that a tensor belongs to.
fn block_of(name: &str) -> Option<&str> {
    let mut end = 0;
    for part in name.split('.') {
        end += part.len();
        if part.parse::<usize>().is_ok() {
            return Some(&name[..end]);
        }
        end += 1;
    }
    None
}

fn dense_bytes(shape: &[usize], dtype: DType) -> u64 {
    let size = dtype.size_in_bytes() as u64;
    shape.iter().fold(size, |all, side| all.saturating_mul(*side as u64))
}
