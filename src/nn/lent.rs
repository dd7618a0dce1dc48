//! Blocks whose frozen matrices are lent: a block has them only while it runs.
//!
//! In between a [`BlockKeeper`] has them: each rank a part ([`super::shards`]), or a file ([`super::stream`]). While a block
//! runs, the next one is already on its way: the following one in the forward pass, the previous one in the backward pass.
//! Biases and norms, which are small, stay with their layers.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{Error, Result};

use crate::ops::bytes::{LiveBytes, Origin};
use crate::ops::stored::Weight;

/// A frozen matrix.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// The layer's own.
    Own(Weight),
    /// Its keeper's, lent while its block runs.
    Borrowed(Arc<LentMatrix>),
}

/// A matrix that is there only while its block runs.
#[derive(Debug)]
pub struct LentMatrix {
    shape: (usize, usize),
    whole: Mutex<Option<Weight>>,
}

impl Matrix {
    /// Returns the rows and columns.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match self {
            Self::Own(whole) => whole.shape(),
            Self::Borrowed(lent) => Ok(lent.shape),
        }
    }

    /// # Errors
    /// Fails for a lent matrix while its block does not run.
    pub fn whole(&self) -> Result<Weight> {
        match self {
            Self::Own(whole) => Ok(whole.clone()),
            Self::Borrowed(lent) => {
                let whole = lock(&lent.whole).clone();
                whole.ok_or_else(|| Error::Msg("a lent matrix was read while its block does not run".into()))
            }
        }
    }
}

/// Keeper of the matrices of blocks that do not run.
pub trait BlockKeeper: Send + Sync {
    /// True if matrices are handed over in main memory, whatever the device of their layers.
    fn reads_to_host(&self) -> bool;

    /// Takes a matrix of the block that is being read; `origin` is where its numbers lie in a file. Returns one that its
    /// layer has to keep.
    fn take(&self, matrix: Weight, origin: Option<Origin>) -> Result<Option<Weight>>;

    /// Ends the reading of a block: returns its matrices, in the order in which they were taken.
    fn end_block(&self) -> Result<Arc<dyn KeptBlock>>;

    /// Prepares for the first block that runs, after all have been read. Returns what to log.
    fn start(&self) -> Result<String>;

    /// Lets go of all that can be brought again.
    fn release(&self) {}

    /// Returns the bytes of matrices in memory, if they are counted.
    fn live(&self) -> Option<Arc<LiveBytes>> {
        None
    }
}

/// The matrices of a block, with their keeper.
pub trait KeptBlock: Send + Sync {
    /// Begins to bring them.
    fn begin(self: Arc<Self>) -> Result<Box<dyn PendingBlock>>;
}

/// Matrices on their way.
pub trait PendingBlock: Send {
    /// Waits for them.
    fn end(self: Box<Self>) -> Result<Vec<Weight>>;
}

/// Blocks of one model.
pub struct LentBlocks {
    keeper: Box<dyn BlockKeeper>,
    reading: Mutex<Reading>,
    blocks: Mutex<Vec<Arc<Block>>>,
    under_way: Mutex<InFlight>,
}

/// The block that is being read.
#[derive(Default)]
struct Reading {
    matrices: Vec<Arc<LentMatrix>>,
    /// Bytes of matrices that the layers of all blocks keep.
    own_bytes: usize,
}

struct Block {
    kept: Arc<dyn KeptBlock>,
    matrices: Vec<Arc<LentMatrix>>,
}

/// The running block, and the one on its way.
#[derive(Default)]
struct InFlight {
    started: bool,
    last: Option<usize>,
    next: Option<(usize, Box<dyn PendingBlock>)>,
}

impl LentBlocks {
    /// Blocks with this keeper.
    pub fn new(keeper: Box<dyn BlockKeeper>) -> Self {
        Self {
            keeper,
            reading: Mutex::default(),
            blocks: Mutex::default(),
            under_way: Mutex::default(),
        }
    }

    /// True if matrices are to be read to main memory.
    pub fn reads_to_host(&self) -> bool {
        self.keeper.reads_to_host()
    }

    /// Adds a matrix of the block that is being read; `origin` is where its numbers lie in a file.
    pub fn take(&self, whole: impl Into<Weight>, origin: Option<Origin>) -> Result<Matrix> {
        let whole = whole.into();
        let shape = whole.shape()?;
        let mut reading = lock(&self.reading);
        if let Some(own) = self.keeper.take(whole, origin)? {
            if let Weight::Stored(stored) = &own {
                reading.own_bytes += stored.bytes();
            }
            return Ok(Matrix::Own(own));
        }
        let lent = Arc::new(LentMatrix {
            shape,
            whole: Mutex::default(),
        });
        reading.matrices.push(lent.clone());
        Ok(Matrix::Borrowed(lent))
    }

    /// Ends the reading of a block.
    pub fn end_block(&self) -> Result<()> {
        let matrices = std::mem::take(&mut lock(&self.reading).matrices);
        let kept = self.keeper.end_block()?;
        lock(&self.blocks).push(Arc::new(Block { kept, matrices }));
        Ok(())
    }

    /// Returns the bytes of matrices in few bits that the layers of all blocks keep.
    pub fn own_bytes(&self) -> usize {
        lock(&self.reading).own_bytes
    }

    /// Returns the bytes of lent matrices in memory, if they are counted.
    pub fn live(&self) -> Option<Arc<LiveBytes>> {
        self.keeper.live()
    }

    /// Lends block `index` its matrices until the returned guard is dropped, and begins to bring the next one.
    ///
    /// # Errors
    /// Fails if ranks did not arrive, or a file cannot be read.
    pub fn fetch(&self, index: usize) -> Result<BlockGuard> {
        let mut under_way = lock(&self.under_way);
        if !under_way.started {
            let started = self.keeper.start()?;
            log::info!("{started}");
            under_way.started = true;
        }
        let blocks = lock(&self.blocks);
        let Some(block) = blocks.get(index) else {
            return Err(Error::Msg(format!("no block {index} of {} is lent", blocks.len())));
        };
        let weights = match under_way.next.take() {
            Some((next, coming)) if next == index => coming.end()?,
            other => {
                if let Some((_, another)) = other {
                    another.end()?;
                }
                block.kept.clone().begin()?.end()?
            }
        };
        for (lent, whole) in block.matrices.iter().zip(weights) {
            *lock(&lent.whole) = Some(whole);
        }
        let guard = BlockGuard(block.clone());
        let backwards = index > 0 && under_way.last.is_some_and(|last| last > index);
        let next = if backwards { index - 1 } else { index + 1 };
        if let Some(block) = blocks.get(next) {
            under_way.next = Some((next, block.kept.clone().begin()?));
        }
        under_way.last = Some(index);
        Ok(guard)
    }

    /// Lets go of everything in memory that can be brought again.
    ///
    /// # Errors
    /// Fails if a block on its way does not come.
    pub fn release(&self) -> Result<()> {
        if let Some((_, coming)) = lock(&self.under_way).next.take() {
            coming.end()?;
        }
        self.keeper.release();
        log::debug!("blocks make room for another part of the model");
        Ok(())
    }
}

impl fmt::Debug for LentBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lent blocks", lock(&self.blocks).len())
    }
}

/// Guard of a running block. A matrix saved for the backward pass is kept until that is done.
pub struct BlockGuard(Arc<Block>);

impl Drop for BlockGuard {
    fn drop(&mut self) {
        for lent in &self.0.matrices {
            *lock(&lent.whole) = None;
        }
    }
}

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
