//! A transformer of outlines ([`Content::Outlines`]), with blank adapters, whose passes are recorded.

use std::cell::Cell;

use candle_core::{Error, Tensor, Var};

use super::blank::BlankLayer;
use super::excerpt::{Excerpt, Representative, representatives};
use super::passes::Pass;
use super::sizes::PassSize;
use super::timeline::{Place, Record};
use crate::diffusion::objective;
use crate::models::denoiser::Denoiser;
use crate::models::synthetic::{PatchGrid, SyntheticInput, SyntheticRequest, SyntheticTransformer};
use crate::nn::Weights;
use crate::nn::weights::BlockBytes;
use crate::ops::tape::no_grad;
use crate::process::allocations;
use crate::train::segments::forward_backward;

/// A transformer that shows what it takes.
pub(super) struct Outlined {
    /// The transformer.
    pub transformer: SyntheticTransformer,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Weights of each block.
    pub blocks: Vec<BlockBytes>,
    /// Its adapters.
    pub layers: Vec<BlankLayer>,
    /// Blocks that run.
    pub shown: Vec<Representative>,
}

/// Memory that a pass took at one size.
pub(super) struct RecordedPass {
    /// Bytes of the input and the target.
    pub input_bytes: f64,
    /// Memory over time.
    pub record: Record,
}

/// Clips of a recorded pass, besides their size.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecordedClips {
    /// Number.
    pub count: usize,
    /// Latent frames of a patch.
    pub depth: usize,
    /// Frames per second.
    pub frame_rate: f64,
}

impl Outlined {
    /// Takes a transformer that was built of `weights`.
    pub fn new(transformer: SyntheticTransformer, weights: &Weights, layers: Vec<BlankLayer>) -> Self {
        let blocks = weights.blocks();
        Self {
            transformer,
            weight_bytes: weights.bytes() as u64,
            shown: representatives(&blocks, &layers),
            blocks,
            layers,
        }
    }

    /// Runs a pass, and records what it takes.
    pub fn record(
        &self,
        pass: Pass,
        size: PassSize,
        clips: RecordedClips,
        place: Place,
    ) -> anyhow::Result<RecordedPass> {
        let drawn = self.transformer.draw(&SyntheticRequest {
            grid: PatchGrid {
                frames: size.frames,
                depth: clips.depth,
                patches: size.rows_and_columns(),
            },
            batch: clips.count,
            frame_rate: clips.frame_rate,
            text_tokens: Some(size.text),
        })?;
        Ok(RecordedPass {
            input_bytes: input_bytes(&drawn) as f64,
            record: Record::new(&self.recorded(pass, &drawn)?, place)?,
        })
    }

    /// Runs a pass, and returns what it allocated.
    fn recorded(&self, pass: Pass, drawn: &SyntheticInput) -> anyhow::Result<Vec<allocations::Entry>> {
        let excerpt = Excerpt {
            whole: self.transformer.denoiser(),
            blocks: &self.shown,
        };
        match pass {
            Pass::Forward => {
                let (predicted, entries) = allocations::record(|| no_grad(|| excerpt.forward(&drawn.input)));
                predicted.map(drop)?;
                Ok(entries)
            }
            Pass::Training(retained) | Pass::TrainingForward(retained) => {
                let layers = self.layers.iter();
                let vars: Vec<Var> = layers.flat_map(|layer| [layer.a.clone(), layer.b.clone()]).collect();
                let ended = Cell::new(false);
                let loss = |prediction: &Tensor| match pass {
                    Pass::TrainingForward(_) => {
                        ended.set(true);
                        Err(Error::Msg("there is no way back".into()))
                    }
                    Pass::Forward | Pass::Training(_) => objective::loss(prediction, &drawn.target, None),
                };
                let saved = retained.saved();
                let (passed, entries) =
                    allocations::record(|| forward_backward(&excerpt, &drawn.input, &loss, &vars, saved));
                match ended.get() {
                    true => Ok(entries),
                    false => Ok(passed.map(|_| entries)?),
                }
            }
        }
    }
}

/// Returns the bytes of an input and a target.
fn input_bytes(SyntheticInput { input, target }: &SyntheticInput) -> usize {
    let tensors = [&input.latents, &input.text.hidden, target];
    let optional = [&input.image, &input.text.pooled, &input.text.mask];
    let all = tensors.into_iter().chain(optional.into_iter().flatten());
    all.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes())
        .sum()
}
