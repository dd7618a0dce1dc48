//! What all denoising transformers here share: how they are loaded, what they refuse, how their blocks are passed.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Device, Error, Result, Tensor};
use indicatif::BinaryBytes;

use super::denoiser::{Denoiser, Input, State};
use super::places::Places;
use crate::nn::shards::Shards;
use crate::nn::weights::{Planter, Reading};
use crate::nn::{WeightFolder, Weights, config};

/// What is a family's own in its transformer.
pub trait Network: Sized + Send + Sync {
    type Config: config::Config + Send + Sync;
    type Block: Block;

    /// Takes its tensors from `weights`, whose root is the transformer's.
    fn new(config: &Self::Config, weights: &Weights) -> Result<Self>;

    /// What it has a place for.
    fn places(config: &Self::Config) -> Places;

    /// What tensors begin with that published files may hold although nobody needs them.
    fn stray(&self) -> Vec<String> {
        Vec::new()
    }

    /// Embeds an input that has been checked; its latents, text and image are of the weights' type.
    fn stem(&self, config: &Self::Config, input: &Input) -> Result<State>;

    fn blocks(&self) -> &[Self::Block];

    /// The prediction, in the order of the input's latents.
    fn head(&self, config: &Self::Config, state: &State) -> Result<Tensor>;
}

/// One of the blocks between stem and head.
pub trait Block: Send + Sync {
    fn forward(&self, state: &State) -> Result<State>;
}

/// Builds `count` blocks, whose weights are numbered.
pub fn blocks<B>(count: usize, weights: Weights, block: impl Fn(Weights) -> Result<B>) -> Result<Vec<B>> {
    (0..count).map(|i| weights.block(i, &block)).collect()
}

fn planted(weights: Weights, planter: Option<Arc<dyn Planter>>) -> Weights {
    match planter {
        Some(planter) => weights.with_planter(planter),
        None => weights,
    }
}

/// A network with its config.
#[derive(Debug, Clone)]
pub struct Transformer<N: Network> {
    config: N::Config,
    dtype: DType,
    network: N,
    /// Where the blocks' matrices are shared out.
    shards: Option<Arc<Shards>>,
}

impl<N: Network> Transformer<N> {
    /// Reads `config.json` and the weights in `folder`, the checkpoint's `transformer/`.
    ///
    /// # Errors
    /// Files that are missing or do not belong together, by file and key or tensor.
    pub fn load(
        folder: impl Into<WeightFolder>,
        dtype: DType,
        device: &Device,
        planter: Option<Arc<dyn Planter>>,
    ) -> anyhow::Result<Self> {
        Self::read(folder, &Reading::numbers(dtype, device), planter)
    }

    /// As [`load`](Self::load), read as `reading` says.
    pub fn read(
        folder: impl Into<WeightFolder>,
        reading: &Reading,
        planter: Option<Arc<dyn Planter>>,
    ) -> anyhow::Result<Self> {
        let folder: &WeightFolder = &folder.into();
        let config = config::read(folder)?; // says more than the weights, where both are wrong
        let weights = planted(Weights::read(folder, reading)?, planter);
        weights.ensure_memory(&[])?;
        Self::build(folder, config, weights)
    }

    /// As [`load`](Self::load), with weights from somewhere else.
    pub fn load_from(folder: &Path, weights: Weights, planter: Option<Arc<dyn Planter>>) -> anyhow::Result<Self> {
        Self::build(folder, config::read(folder)?, planted(weights, planter))
    }

    fn build(folder: &Path, config: N::Config, weights: Weights) -> anyhow::Result<Self> {
        let network = N::new(&config, &weights).with_context(|| folder.display().to_string())?;
        let stray = network.stray();
        weights.finish(&stray.iter().map(String::as_str).collect::<Vec<_>>())?;
        let shards = weights.shards();
        if let Some(shards) = &shards {
            log::info!(
                "the matrices of {} blocks are shared out over {} ranks: {} on each, and two whole blocks of {}",
                network.blocks().len(),
                shards.ranks(),
                BinaryBytes(shards.bytes() as u64),
                BinaryBytes(shards.largest() as u64)
            );
        }
        Ok(Self {
            config,
            dtype: weights.dtype(),
            network,
            shards,
        })
    }

    pub fn config(&self) -> &N::Config {
        &self.config
    }
}

impl<N: Network> Denoiser for Transformer<N> {
    fn stem(&self, input: &Input) -> Result<State> {
        N::places(&self.config).check(input)?;
        let mut input = input.clone();
        input.latents = input.latents.to_dtype(self.dtype)?;
        input.text.hidden = input.text.hidden.to_dtype(self.dtype)?;
        input.image = input.image.map(|image| image.to_dtype(self.dtype)).transpose()?;
        self.network.stem(&self.config, &input)
    }

    fn num_blocks(&self) -> usize {
        self.network.blocks().len()
    }

    fn block(&self, index: usize, state: &State) -> Result<State> {
        let _here = self.shards.as_ref().map(|shards| shards.bring(index)).transpose()?;
        match self.network.blocks().get(index) {
            Some(block) => block.forward(state),
            None => Err(Error::Msg(format!("no block {index} of {}", self.num_blocks()))),
        }
    }

    fn head(&self, state: &State) -> Result<Tensor> {
        self.network.head(&self.config, state)
    }
}
