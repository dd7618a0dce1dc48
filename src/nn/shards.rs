//! Sharded frozen matrices of blocks: each rank keeps 1/N of every block, and has a whole block only while it runs.
//!
//! The matrices of a block, concatenated and padded with zeros to a multiple of N, are one vector, of which rank r
//! keeps the r-th part. While a block runs, the next one is being gathered: the following one in the forward pass, the
//! previous one in the backward pass. That is the third stage of ZeRO (arXiv:1910.02054) for weights that no step
//! changes. Biases and norms, which are small, stay on every rank.
//!
//! All ranks must run the same blocks in the same order.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Error, Result, Shape, Tensor};

use crate::distributed::{AllGather, Pending};
use crate::ops::stored::Weight;

/// A frozen matrix.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// The whole matrix, in this process.
    Own(Weight),
    /// A part of the matrix, gathered when its block runs.
    Shared(Arc<ShardedMatrix>),
}

/// A matrix that is whole only while its block runs.
#[derive(Debug)]
pub struct ShardedMatrix {
    shape: Shape,
    whole: Mutex<Option<Tensor>>,
}

impl Matrix {
    /// Returns the rows and columns.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match self {
            Self::Own(whole) => whole.shape(),
            Self::Shared(lent) => lent.shape.dims2(),
        }
    }

    /// # Errors
    /// Fails for a sharded matrix while its block does not run.
    pub fn whole(&self) -> Result<Weight> {
        match self {
            Self::Own(whole) => Ok(whole.clone()),
            Self::Shared(lent) => {
                let whole = lock(&lent.whole).clone().map(Weight::Dense);
                whole.ok_or_else(|| Error::Msg("a sharded matrix was read while its block does not run".into()))
            }
        }
    }
}

/// Sharded matrices of all blocks of a model.
pub struct Shards {
    ranks: Arc<dyn AllGather>,
    /// Matrices of the block that is being read.
    reading: Mutex<Vec<(Arc<ShardedMatrix>, Tensor)>>,
    blocks: Mutex<Vec<Arc<Block>>>,
    under_way: Mutex<InFlight>,
}

struct Block {
    /// This rank's part: (n)
    part: Tensor,
    matrices: Vec<Arc<ShardedMatrix>>,
}

/// The running block, and the one being gathered.
#[derive(Default)]
struct InFlight {
    last: Option<usize>,
    next: Option<(usize, Box<dyn Pending>)>,
}

impl Shards {
    /// Shards among these ranks.
    pub fn new(ranks: Arc<dyn AllGather>) -> Self {
        Self {
            ranks,
            reading: Mutex::default(),
            blocks: Mutex::default(),
            under_way: Mutex::default(),
        }
    }

    /// Returns the number of ranks.
    pub fn ranks(&self) -> usize {
        self.ranks.world_size()
    }

    /// Adds a matrix of the block that is being read. One of another type than the first stays whole.
    pub fn take(&self, whole: Tensor) -> Matrix {
        let mut reading = lock(&self.reading);
        let fits = match reading.first() {
            Some((_, first)) => first.dtype() == whole.dtype(),
            None => matches!(whole.dtype(), DType::F32 | DType::BF16 | DType::F16),
        };
        if !fits {
            return Matrix::Own(whole.into());
        }
        let lent = Arc::new(ShardedMatrix {
            shape: whole.shape().clone(),
            whole: Mutex::default(),
        });
        reading.push((lent.clone(), whole));
        Matrix::Shared(lent)
    }

    /// Ends the reading of a block: this rank keeps its part.
    pub fn share_out(&self) -> Result<()> {
        let reading = std::mem::take(&mut *lock(&self.reading));
        let (matrices, wholes): (Vec<_>, Vec<_>) = reading.into_iter().unzip();
        let mut rows = Vec::new();
        for whole in wholes {
            rows.push(whole.flatten_all()?);
        }
        let Some(first) = rows.first() else {
            return Ok(());
        };
        let count: usize = rows.iter().map(Tensor::elem_count).sum();
        let each = count.div_ceil(self.ranks());
        let (dtype, device) = (first.dtype(), first.device().clone());
        rows.push(Tensor::zeros(each * self.ranks() - count, dtype, &device)?);
        let row = Tensor::cat(&rows, 0)?; // (N n)
        // A copy, because a view would keep all of it.
        let part = row.narrow(0, self.ranks.rank() * each, each)?.copy()?; // (n)
        lock(&self.blocks).push(Arc::new(Block { part, matrices }));
        Ok(())
    }

    /// Returns the bytes that this rank keeps of all blocks.
    pub fn bytes(&self) -> usize {
        lock(&self.blocks).iter().map(|block| block.bytes()).sum()
    }

    /// Returns the bytes of the largest block, whole.
    pub fn largest(&self) -> usize {
        let largest = lock(&self.blocks).iter().map(|block| block.bytes()).max();
        largest.unwrap_or(0) * self.ranks()
    }

    /// Gathers block `index` until the returned guard is dropped, and begins to gather the next one.
    ///
    /// # Errors
    /// Fails if ranks did not arrive.
    pub fn fetch(&self, index: usize) -> Result<BlockGuard> {
        let blocks = lock(&self.blocks);
        let Some(block) = blocks.get(index) else {
            return Err(Error::Msg(format!("no block {index} of {} is sharded", blocks.len())));
        };
        let mut under_way = lock(&self.under_way);
        let row = match under_way.next.take() {
            Some((next, gathering)) if next == index => gathering.end(),
            other => {
                if let Some((_, another)) = other {
                    another.end().map_err(wrapped)?;
                }
                self.ranks.begin(&block.part).and_then(|gathering| gathering.end())
            }
        };
        let row = row.map_err(wrapped)?.to_device(block.part.device())?; // (N n)
        let brought = BlockGuard(block.clone());
        block.lend(&row)?;
        let backwards = index > 0 && under_way.last.is_some_and(|last| last > index);
        let next = if backwards { index - 1 } else { index + 1 };
        if let Some(block) = blocks.get(next) {
            under_way.next = Some((next, self.ranks.begin(&block.part).map_err(wrapped)?));
        }
        under_way.last = Some(index);
        Ok(brought)
    }
}

impl fmt::Debug for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shards({} of {})", self.ranks.rank(), self.ranks.world_size())
    }
}

impl Block {
    /// Bytes of the part that is kept.
    fn bytes(&self) -> usize {
        self.part.elem_count() * self.part.dtype().size_in_bytes()
    }

    fn lend(&self, row: &Tensor) -> Result<()> {
        let mut start = 0;
        for lent in &self.matrices {
            let count = lent.shape.elem_count();
            *lock(&lent.whole) = Some(row.narrow(0, start, count)?.reshape(&lent.shape)?);
            start += count;
        }
        Ok(())
    }
}

/// Guard of a gathered block. A matrix saved for the backward pass is kept until that is done.
pub struct BlockGuard(Arc<Block>);

impl Drop for BlockGuard {
    fn drop(&mut self) {
        for lent in &self.0.matrices {
            *lock(&lent.whole) = None;
        }
    }
}

fn wrapped(error: anyhow::Error) -> Error {
    Error::Msg(format!("{error:#}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
