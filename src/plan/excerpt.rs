//! Some blocks of a denoiser, which stand for all of them: of consecutive blocks that are alike, the first, the second and the
//! last run, and the second stands for those in between.

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Error, Result};

use super::blank::BlankLayer;
use crate::models::denoiser::{Denoiser, Input, State};
use crate::nn::weights::BlockBytes;
use crate::process::allocations::{Event, mention};

/// Part of a record before the first block.
pub const EMBEDDING: usize = 0;

/// The part of the first block.
pub const FIRST_BLOCK: usize = 1;

/// Blocks that run, of a longest stretch of blocks that are alike.
const SHOWN: usize = 3;

/// A block that runs, and the number of those that it stands for besides itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Representative {
    /// Number of the block in the model.
    pub block: usize,
    /// Further blocks like this one.
    pub more: usize,
}

/// Chooses the blocks that run. Blocks are alike if they take the same bytes and have adapters of the same shapes on
/// layers of the same names.
pub fn representatives(blocks: &[BlockBytes], adapters: &[BlankLayer]) -> Vec<Representative> {
    let kinds: Vec<_> = blocks
        .iter()
        .map(|block| {
            let inside = adapters.iter().filter_map(|layer| {
                let name = layer.path.strip_prefix(&block.path)?.strip_prefix('.')?;
                Some((name, layer.a.dims().to_vec(), layer.b.dims().to_vec()))
            });
            (block.bytes, inside.collect::<Vec<_>>())
        })
        .collect();
    let mut chosen = Vec::new();
    let mut first = 0;
    for alike in kinds.chunk_by(|a, b| a == b) {
        let more = alike.len().saturating_sub(SHOWN);
        let shown = (0..alike.len()).filter(|i| *i < 2 || *i + 1 == alike.len());
        chosen.extend(shown.map(|i| Representative {
            block: first + i,
            more: if i == 1 { more } else { 0 },
        }));
        first += alike.len();
    }
    chosen
}

/// A denoiser of some of another's blocks, which mentions in the record of allocations what it begins: 0 is the
/// embedding, then come the blocks, and at last the head.
pub struct Excerpt<'a> {
    whole: &'a dyn Denoiser,
    blocks: &'a [Representative],
    /// Part that does not run any more; None if all do.
    end: Option<usize>,
    ended: AtomicBool,
}

impl<'a> Excerpt<'a> {
    /// Takes the blocks of a denoiser that run.
    pub fn new(whole: &'a dyn Denoiser, blocks: &'a [Representative]) -> Self {
        Self {
            whole,
            blocks,
            end: None,
            ended: AtomicBool::new(false),
        }
    }

    /// Fails where a part begins, in place of running it.
    pub fn until(self, part: usize) -> Self {
        Self {
            end: Some(part),
            ..self
        }
    }

    /// True if the part was reached that does not run.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn begin(&self, part: usize) -> Result<()> {
        mention(Event::Part(part));
        if self.end != Some(part) {
            return Ok(());
        }
        self.ended.store(true, Ordering::Relaxed);
        Err(Error::Msg("nothing more is asked for".into()))
    }
}

impl Denoiser for Excerpt<'_> {
    fn embed(&self, input: &Input) -> Result<State> {
        self.begin(EMBEDDING)?;
        self.whole.embed(input)
    }

    fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(&self, index: usize, state: &State) -> Result<State> {
        self.begin(FIRST_BLOCK + index)?;
        self.whole.block(self.blocks[index].block, state)
    }

    fn head(&self, state: &State) -> Result<candle_core::Tensor> {
        self.begin(FIRST_BLOCK + self.blocks.len())?;
        self.whole.head(state)
    }
}
