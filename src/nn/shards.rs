//! Sharded frozen matrices of blocks: each rank keeps 1/N of every block, and has a whole block only while it runs.
//!
//! The matrices of a block, concatenated and padded with zeros to a multiple of N, are one vector, of which rank r
//! keeps the r-th part. That is the third stage of ZeRO (arXiv:1910.02054) for weights that no step changes. Matrices in
//! few bits stay on every rank.
//!
//! A rank's parts may be streamed ([`super::stream`], [`super::ring`]): then each is brought before its block is put
//! together. Matrices in few bits are streamed beside them.
//!
//! All ranks must run the same blocks in the same order.

use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use indicatif::BinaryBytes;

use super::lent::{BlockKeeper, KeptBlock, PendingBlock, lock};
use crate::distributed::{AllGather, Pending};
use crate::ops::bytes::{LiveBytes, Origin};
use crate::ops::stored::Weight;

/// Sharded matrices of all blocks of a model.
pub struct Shards {
    ranks: Arc<dyn AllGather>,
    /// Keeper of the parts, and of matrices in few bits, if they are streamed, and the device that they run on.
    streamed: Option<(Box<dyn BlockKeeper>, Device)>,
    reading: Mutex<Reading>,
    blocks: Mutex<Vec<Arc<ShardedBlock>>>,
}

/// Matrices of the block that is being read.
#[derive(Default)]
struct Reading {
    /// Those that are sharded.
    wholes: Vec<Tensor>,
    /// All of them, in order.
    kinds: Vec<Kind>,
}

/// Way that a matrix is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A part on each rank.
    Sharded,
    /// In a file, whole on each rank.
    Streamed,
}

struct ShardedBlock {
    ranks: Arc<dyn AllGather>,
    part: Part,
    /// Numbers of the part, and their type.
    count: usize,
    dtype: DType,
    shapes: Vec<Shape>,
    kinds: Vec<Kind>,
    device: Device,
}

/// This rank's part of a block: (n)
enum Part {
    Here(Tensor),
    /// The last matrix, (1, n), of what is streamed; alone where nothing of the block is sharded.
    Filed(Arc<dyn KeptBlock>),
}

impl Shards {
    /// Shards among these ranks.
    pub fn new(ranks: Arc<dyn AllGather>) -> Self {
        Self {
            ranks,
            streamed: None,
            reading: Mutex::default(),
            blocks: Mutex::default(),
        }
    }

    /// Shards that are streamed on each rank, to run on `device`.
    pub fn streamed(ranks: Arc<dyn AllGather>, streamed: Box<dyn BlockKeeper>, device: &Device) -> Self {
        Self {
            streamed: Some((streamed, device.clone())),
            ..Self::new(ranks)
        }
    }

    /// Takes a matrix that is not sharded: streams it, or returns it.
    fn take_other(&self, matrix: Weight, origin: Option<Origin>) -> Result<Option<Weight>> {
        let Some((streamed, _)) = &self.streamed else {
            return Ok(Some(matrix));
        };
        let own = streamed.take(matrix, origin)?;
        if own.is_none() {
            lock(&self.reading).kinds.push(Kind::Streamed);
        }
        Ok(own)
    }

    /// Returns this rank's part of matrices of one type, concatenated: (n)
    fn part(&self, wholes: &[Tensor]) -> Result<Option<Tensor>> {
        let mut rows = wholes.iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
        let Some(first) = rows.first() else {
            return Ok(None);
        };
        let count = rows.iter().map(Tensor::elem_count).sum::<usize>();
        let each = count.div_ceil(self.ranks.world_size());
        let (dtype, device) = (first.dtype(), first.device().clone());
        rows.push(Tensor::zeros(each * self.ranks.world_size() - count, dtype, &device)?);
        let row = Tensor::cat(&rows, 0)?; // (N n)
        // Its numbers alone: a view would keep all of them, and so would `copy`, which copies the whole storage.
        row.narrow(0, self.ranks.rank() * each, each)?
            .force_contiguous()
            .map(Some) // (n)
    }
}

impl BlockKeeper for Shards {
    fn reads_to_host(&self) -> bool {
        self.streamed.is_some()
    }

    /// One of another type than the first stays whole.
    fn take(&self, matrix: Weight, origin: Option<Origin>) -> Result<Option<Weight>> {
        let whole = match matrix {
            Weight::Dense(whole) => whole,
            stored => return self.take_other(stored, origin),
        };
        let fits = match lock(&self.reading).wholes.first() {
            Some(first) => first.dtype() == whole.dtype(),
            None => matches!(whole.dtype(), DType::F32 | DType::BF16 | DType::F16),
        };
        if !fits {
            return self.take_other(whole.into(), origin);
        }
        let mut reading = lock(&self.reading);
        reading.wholes.push(whole);
        reading.kinds.push(Kind::Sharded);
        Ok(None)
    }

    /// This rank keeps its part.
    fn end_block(&self) -> Result<Arc<dyn KeptBlock>> {
        let Reading { wholes, kinds } = std::mem::take(&mut *lock(&self.reading));
        let part = self.part(&wholes)?;
        let shapes = wholes.iter().map(|whole| whole.shape().clone()).collect();
        drop(wholes);
        let (count, dtype) = part
            .as_ref()
            .map_or((0, DType::F32), |part| (part.elem_count(), part.dtype()));
        let (part, device) = match (part, &self.streamed) {
            (None, None) => return Ok(Arc::new(Nothing)),
            (Some(part), None) => {
                let device = part.device().clone();
                (Part::Here(part), device)
            }
            (part, Some((streamed, device))) => {
                let own = match part {
                    Some(part) => streamed.take(part.unsqueeze(0)?.into(), None)?,
                    None => None,
                };
                if own.is_some() {
                    return Err(Error::Msg("a part of a block cannot be streamed".into()));
                }
                (Part::Filed(streamed.end_block()?), device.clone())
            }
        };
        let block = Arc::new(ShardedBlock {
            ranks: self.ranks.clone(),
            part,
            count,
            dtype,
            shapes,
            kinds,
            device,
        });
        lock(&self.blocks).push(block.clone());
        Ok(block)
    }

    fn start(&self) -> Result<String> {
        let blocks = lock(&self.blocks);
        let bytes = blocks.iter().map(|block| block.bytes());
        let largest = bytes.clone().max().unwrap_or(0) * self.ranks.world_size();
        let sharded = format!(
            "the matrices of {} blocks are sharded over {} ranks: {} on each, and two whole blocks of {}",
            blocks.len(),
            self.ranks.world_size(),
            BinaryBytes(bytes.sum::<usize>() as u64),
            BinaryBytes(largest as u64)
        );
        match &self.streamed {
            Some((streamed, _)) => Ok(format!("{sharded}; of each rank's, {}", streamed.start()?)),
            None => Ok(sharded),
        }
    }

    fn release(&self) {
        if let Some((streamed, _)) = &self.streamed {
            streamed.release();
        }
    }

    fn live(&self) -> Option<Arc<LiveBytes>> {
        self.streamed.as_ref().and_then(|(streamed, _)| streamed.live())
    }
}

impl ShardedBlock {
    /// Bytes of the part that is kept.
    fn bytes(&self) -> usize {
        self.count * self.dtype.size_in_bytes()
    }

    /// Returns this rank's part, if there is one, and the matrices beside it; waits for what is in files.
    fn own(&self) -> Result<(Option<Tensor>, Vec<Weight>)> {
        let block = match &self.part {
            Part::Here(part) => return Ok((Some(part.clone()), Vec::new())),
            Part::Filed(block) => block.clone(),
        };
        let mut matrices = block.begin()?.end()?;
        let part = match self.count {
            0 => None,
            _ => matrices.pop(),
        };
        let part = part.map(|part| part.dense(self.dtype)?.flatten_all());
        Ok((part.transpose()?, matrices))
    }
}

impl KeptBlock for ShardedBlock {
    fn begin(self: Arc<Self>) -> Result<Box<dyn PendingBlock>> {
        let (part, others) = self.own()?;
        let pending = part.map(|part| self.ranks.begin(&part).map_err(wrapped));
        Ok(Box::new(PendingShards {
            pending: pending.transpose()?,
            others,
            block: self,
        }))
    }
}

struct PendingShards {
    pending: Option<Box<dyn Pending>>,
    /// Matrices that are not sharded.
    others: Vec<Weight>,
    block: Arc<ShardedBlock>,
}

impl PendingBlock for PendingShards {
    fn end(self: Box<Self>) -> Result<Vec<Weight>> {
        let Self { pending, others, block } = *self;
        let row = pending.map(|pending| pending.end().map_err(wrapped)?.to_device(&block.device));
        let row = row.transpose()?; // (N n)
        let (mut others, mut shapes, mut start) = (others.into_iter(), block.shapes.iter(), 0);
        let matrix = |kind: &Kind| match (kind, &row) {
            (Kind::Streamed, _) => others.next().map(Ok),
            (Kind::Sharded, Some(row)) => shapes.next().map(|shape| {
                let count = shape.elem_count();
                start += count;
                Ok(row.narrow(0, start - count, count)?.reshape(shape)?.into())
            }),
            (Kind::Sharded, None) => None,
        };
        block.kinds.iter().filter_map(matrix).collect()
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
