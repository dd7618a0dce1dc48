//! Some blocks of a denoiser, which stand for all of them: of consecutive blocks that are alike, the first, the second and the
//! last run, and the second stands for those in between.

use candle_core::Result;

use super::blank::BlankLayer;
use crate::models::denoiser::{Denoiser, Input, State};
use crate::nn::weights::BlockBytes;
use crate::process::allocations::{Event, mention};

/// Part of a record before the first block.
pub const EMBEDDING: usize = 0;

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
    /// The whole denoiser.
    pub whole: &'a dyn Denoiser,
    /// Its blocks that run.
    pub blocks: &'a [Representative],
}

impl Denoiser for Excerpt<'_> {
    fn embed(&self, input: &Input) -> Result<State> {
        mention(Event::Part(EMBEDDING));
        self.whole.embed(input)
    }

    fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(&self, index: usize, state: &State) -> Result<State> {
        mention(Event::Part(index + 1));
        self.whole.block(self.blocks[index].block, state)
    }

    fn head(&self, state: &State) -> Result<candle_core::Tensor> {
        mention(Event::Part(self.blocks.len() + 1));
        self.whole.head(state)
    }
}
