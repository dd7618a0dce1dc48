//! Shared parts of the denoising transformers: loading, input checks, iteration over blocks.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use candle_core::{DType, Error, Result, Tensor};
use indicatif::BinaryBytes;

use super::denoiser::{Denoiser, Input, State};
use super::dense_modules::DenseModules;
use super::input_spec::InputSpec;
use crate::diffusers_config::Config;
use crate::nn::flops::Flops;
use crate::nn::lent::LentBlocks;
use crate::nn::{Load, WeightFolder, Weights};

/// A family's own part of its transformer.
pub trait Network: Sized + Send + Sync {
    /// Settings in `transformer/config.json`.
    type Config: Config + Send + Sync;
    /// Kind of block.
    type Block: Block;

    /// Modules that stay dense where others are stored in few bits.
    const DENSE_MODULES: DenseModules = DenseModules::NONE;

    /// Builds the network from `weights`, whose root is the transformer's.
    fn new(config: &Self::Config, weights: &Weights) -> Result<Self>;

    /// Returns the input shapes that it accepts.
    fn input_spec(config: &Self::Config) -> InputSpec;

    /// Key prefixes that may be present in checkpoints and are ignored.
    fn ignored_keys(&self) -> Vec<String> {
        Vec::new()
    }

    /// Embeds an input that has been checked; its latents, text and image are of the weights' type.
    fn embed(&self, config: &Self::Config, input: &Input) -> Result<State>;

    /// Returns the blocks, in order.
    fn blocks(&self) -> &[Self::Block];

    /// Returns the prediction, in the order of the input's latents.
    fn head(&self, config: &Self::Config, state: &State) -> Result<Tensor>;
}

/// A block between embedding and head.
pub trait Block: Send + Sync {
    /// Returns the state after the block.
    ///
    /// # Errors
    /// Fails on mismatched shapes or types.
    fn forward(&self, state: &State) -> Result<State>;

    /// Returns the floating-point operations of one sample in this state, forward.
    fn flops(&self, state: &State) -> Result<Flops>;
}

/// Builds `count` blocks with numbered weights.
pub fn blocks<B>(count: usize, weights: Weights, block: impl Fn(Weights) -> Result<B>) -> Result<Vec<B>> {
    (0..count).map(|i| weights.block(i, &block)).collect()
}

/// A network with its config.
#[derive(Debug, Clone)]
pub struct Transformer<N: Network> {
    config: N::Config,
    dtype: DType,
    network: N,
    /// Lent matrices of the blocks, if any.
    lent: Option<Arc<LentBlocks>>,
}

impl<N: Network> Transformer<N> {
    /// Reads `config.json` and the weights in `folder`, the checkpoint's `transformer/`.
    ///
    /// # Errors
    /// Names the file and key or tensor that is missing or does not match.
    pub fn load(folder: impl Into<WeightFolder>, load: &Load) -> anyhow::Result<Self> {
        let folder: &WeightFolder = &folder.into();
        let config = N::Config::load(folder)?; // says more than the weights, where both are wrong
        let form = load.quantization.transformer;
        let weights = Weights::read(folder, load)?.quantized(form, &N::DENSE_MODULES.of(form));
        weights.ensure_memory(&[])?;
        weights.ensure_space()?;
        Self::build(folder.source(), config, weights)
    }

    /// Same as [`load`](Self::load), with weights from elsewhere.
    pub fn load_from(folder: &Path, weights: Weights) -> anyhow::Result<Self> {
        Self::build(folder, N::Config::load(folder)?, weights)
    }

    fn build(folder: &Path, config: N::Config, weights: Weights) -> anyhow::Result<Self> {
        let network = N::new(&config, &weights).with_context(|| folder.display().to_string())?;
        let ignored = network.ignored_keys();
        weights.finish(&ignored.iter().map(String::as_str).collect::<Vec<_>>())?;
        let lent = weights.lent();
        if let Some(bytes) = lent.as_ref().map(|lent| lent.own_bytes()).filter(|bytes| *bytes > 0) {
            log::info!(
                "matrices in few bits are not sharded: every rank has all {} of them",
                BinaryBytes(bytes as u64)
            );
        }
        Ok(Self {
            config,
            dtype: weights.dtype(),
            network,
            lent,
        })
    }

    /// Returns the floating-point operations of one sample, in its blocks, forward.
    pub fn flops(&self, input: &Input) -> Result<Flops> {
        let state = self.embed(input)?;
        let blocks = self.network.blocks().iter().map(|block| block.flops(&state));
        blocks.sum()
    }

    /// Settings of the checkpoint.
    pub fn config(&self) -> &N::Config {
        &self.config
    }
}

impl<N: Network> Denoiser for Transformer<N> {
    fn embed(&self, input: &Input) -> Result<State> {
        N::input_spec(&self.config).check(input)?;
        let mut input = input.clone();
        input.latents = input.latents.to_dtype(self.dtype)?;
        input.text = input.text.to_dtype(self.dtype)?;
        input.image = input.image.map(|image| image.to_dtype(self.dtype)).transpose()?;
        self.network.embed(&self.config, &input)
    }

    fn num_blocks(&self) -> usize {
        self.network.blocks().len()
    }

    fn block(&self, index: usize, state: &State) -> Result<State> {
        let _here = self.lent.as_ref().map(|lent| lent.fetch(index)).transpose()?;
        match self.network.blocks().get(index) {
            Some(block) => block.forward(state),
            None => Err(Error::Msg(format!("no block {index} of {}", self.num_blocks()))),
        }
    }

    fn head(&self, state: &State) -> Result<Tensor> {
        self.network.head(&self.config, state)
    }

    fn release(&self) -> Result<()> {
        self.lent.as_ref().map_or(Ok(()), |lent| lent.release())
    }
}
