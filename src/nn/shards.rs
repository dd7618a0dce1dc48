//! Sharded frozen matrices of blocks: each rank keeps 1/N of every block, and has a whole block only while it runs.
//!
//! The matrices of a block, concatenated and padded with zeros to a multiple of N, are one vector, of which rank r
//! keeps the r-th part. That is the third stage of ZeRO (arXiv:1910.02054) for weights that no step changes. Matrices in
//! few bits stay on every rank.
//!
//! All ranks must run the same blocks in the same order.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Error, Result, Shape, Tensor};
use indicatif::BinaryBytes;

use super::lent::{BlockKeeper, KeptBlock, PendingBlock, lock};
use crate::distributed::{AllGather, Pending};
use crate::ops::bytes::Origin;
use crate::ops::stored::Weight;

/// Sharded matrices of all blocks of a model.
pub struct Shards {
    ranks: Arc<dyn AllGather>,
    /// Matrices of the block that is being read.
    reading: Mutex<Vec<Tensor>>,
    blocks: Mutex<Vec<Arc<ShardedBlock>>>,
}

struct ShardedBlock {
    ranks: Arc<dyn AllGather>,
    /// This rank's part: (n)
    part: Tensor,
    shapes: Vec<Shape>,
}

impl Shards {
    /// Shards among these ranks.
    pub fn new(ranks: Arc<dyn AllGather>) -> Self {
        Self {
            ranks,
            reading: Mutex::default(),
            blocks: Mutex::default(),
        }
    }
}

impl BlockKeeper for Shards {
    fn reads_to_host(&self) -> bool {
        false
    }

    /// One of another type than the first stays whole.
    fn take(&self, matrix: Weight, _: Option<Origin>) -> Result<Option<Weight>> {
        let whole = match matrix {
            Weight::Dense(whole) => whole,
            stored => return Ok(Some(stored)),
        };
        let mut reading = lock(&self.reading);
        let fits = match reading.first() {
            Some(first) => first.dtype() == whole.dtype(),
            None => matches!(whole.dtype(), DType::F32 | DType::BF16 | DType::F16),
        };
        if !fits {
            return Ok(Some(whole.into()));
        }
        reading.push(whole);
        Ok(None)
    }

    /// This rank keeps its part.
    fn end_block(&self) -> Result<Arc<dyn KeptBlock>> {
        let wholes = std::mem::take(&mut *lock(&self.reading));
        let shapes = wholes.iter().map(|whole| whole.shape().clone()).collect();
        let mut rows = wholes.iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
        drop(wholes);
        let Some(first) = rows.first() else {
            return Ok(Arc::new(Nothing));
        };
        let (count, world_size) = (
            rows.iter().map(Tensor::elem_count).sum::<usize>(),
            self.ranks.world_size(),
        );
        let each = count.div_ceil(world_size);
        let (dtype, device) = (first.dtype(), first.device().clone());
        rows.push(Tensor::zeros(each * world_size - count, dtype, &device)?);
        let row = Tensor::cat(&rows, 0)?; // (N n)
        let block = Arc::new(ShardedBlock {
            ranks: self.ranks.clone(),
            // A copy, because a view would keep all of it.
            part: row.narrow(0, self.ranks.rank() * each, each)?.copy()?, // (n)
            shapes,
        });
        lock(&self.blocks).push(block.clone());
        Ok(block)
    }

    fn start(&self) -> Result<String> {
        let blocks = lock(&self.blocks);
        let bytes = blocks.iter().map(|block| block.bytes());
        let largest = bytes.clone().max().unwrap_or(0) * self.ranks.world_size();
        Ok(format!(
            "the matrices of {} blocks are sharded over {} ranks: {} on each, and two whole blocks of {}",
            blocks.len(),
            self.ranks.world_size(),
            BinaryBytes(bytes.sum::<usize>() as u64),
            BinaryBytes(largest as u64)
        ))
    }
}

impl ShardedBlock {
    /// Bytes of the part that is kept.
    fn bytes(&self) -> usize {
        self.part.elem_count() * self.part.dtype().size_in_bytes()
    }
}

impl KeptBlock for ShardedBlock {
    fn begin(self: Arc<Self>) -> Result<Box<dyn PendingBlock>> {
        Ok(Box::new(PendingShards {
            pending: self.ranks.begin(&self.part).map_err(wrapped)?,
            part: self.part.clone(),
            shapes: self.shapes.clone(),
        }))
    }
}

struct PendingShards {
    pending: Box<dyn Pending>,
    part: Tensor,
    shapes: Vec<Shape>,
}

impl PendingBlock for PendingShards {
    fn end(self: Box<Self>) -> Result<Vec<Weight>> {
        let row = self.pending.end().map_err(wrapped)?.to_device(self.part.device())?; // (N n)
        let mut start = 0;
        let matrix = |shape: &Shape| {
            let count = shape.elem_count();
            start += count;
            Ok(row.narrow(0, start - count, count)?.reshape(shape)?.into())
        };
        self.shapes.iter().map(matrix).collect()
    }
}

/// A block without matrices.
struct Nothing;

impl KeptBlock for Nothing {
    fn begin(self: Arc<Self>) -> Result<Box<dyn PendingBlock>> {
        Ok(Box::new(Self))
    }
}

impl PendingBlock for Nothing {
    fn end(self: Box<Self>) -> Result<Vec<Weight>> {
        Ok(Vec::new())
    }
}

fn wrapped(error: anyhow::Error) -> Error {
    Error::Msg(format!("{error:#}"))
}
