//! A transformer of outlines ([`Content::Outlines`]), with blank adapters, whose passes are recorded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use candle_core::{Tensor, Var};

use super::blank::BlankLayer;
use super::excerpt::{Excerpt, FIRST_BLOCK, Representative, representatives};
use super::passes::{Pass, Retained};
use super::sizes::PassSize;
use super::timeline::{Place, Record};
use crate::diffusion::objective;
use crate::models::denoiser::Denoiser;
use crate::models::synthetic::{PatchGrid, SyntheticInput, SyntheticRequest, SyntheticTransformer};
use crate::nn::Weights;
use crate::nn::weights::BlockBytes;
use crate::ops::stored::Outlined as MatrixForm;
use crate::ops::tape::no_grad;
use crate::process::allocations;
use crate::train::segments::forward_backward;

/// Forms of matrices by their paths.
pub(super) type MatrixForms = Vec<(String, MatrixForm)>;

/// A transformer that shows what it takes.
pub(super) struct Outlined {
    /// The transformer.
    pub transformer: SyntheticTransformer,
    /// Bytes of all weights.
    pub weight_bytes: u64,
    /// Weights of each block.
    pub blocks: Vec<BlockBytes>,
    /// Forms of its matrices.
    pub forms: Arc<MatrixForms>,
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
            forms: Arc::new(weights.outlined_forms()),
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
        let blank = self.transformer.blank(&SyntheticRequest {
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
            input_bytes: input_bytes(&blank) as f64,
            record: Record::new(&self.recorded(pass, &blank)?, place)?,
        })
    }

    /// Returns the part of a record in which a block runs that others are like; the first one, if none is.
    pub fn typical_part(&self) -> usize {
        let typical = self.shown.iter().position(|block| block.more > 0);
        FIRST_BLOCK + typical.unwrap_or(0)
    }

    /// Runs a pass, and returns what it allocated.
    fn recorded(&self, pass: Pass, blank: &SyntheticInput) -> anyhow::Result<Vec<allocations::Entry>> {
        let excerpt = Excerpt::new(self.transformer.denoiser(), &self.shown);
        let train = |excerpt: &Excerpt, retained: Retained| {
            let layers = self.layers.iter();
            let vars: Vec<Var> = layers.flat_map(|layer| [layer.a.clone(), layer.b.clone()]).collect();
            let loss = |prediction: &Tensor| objective::loss(prediction, &blank.target, None);
            allocations::record(|| forward_backward(excerpt, &blank.input, &loss, &vars, retained.saved()))
        };
        match pass {
            Pass::Forward => {
                let (predicted, entries) = allocations::record(|| no_grad(|| excerpt.forward(&blank.input)));
                predicted.map(drop)?;
                Ok(entries)
            }
            Pass::Training(retained) => {
                let (passed, entries) = train(&excerpt, retained);
                passed.map(drop)?;
                Ok(entries)
            }
            Pass::TrainingForward(retained) => {
                let excerpt = excerpt.until(self.typical_part() + 1);
                let (passed, entries) = train(&excerpt, retained);
                match excerpt.has_ended() {
                    true => Ok(entries),
                    false => Ok(passed.map(|_| entries)?),
                }
            }
        }
    }
}

/// Records a pass at several sizes, each of the model of its rank, on as many threads as there are for computing.
pub(super) fn record_all<'a>(
    models: &[(&'a Outlined, PassSize)],
    record: impl Fn(&'a Outlined, PassSize) -> anyhow::Result<RecordedPass> + Sync,
) -> anyhow::Result<Vec<RecordedPass>> {
    let (next, (sender, receiver)) = (AtomicUsize::new(0), mpsc::channel());
    thread::scope(|scope| {
        for _ in 0..rayon::current_num_threads().min(models.len()) {
            let (next, sender, record) = (&next, sender.clone(), &record);
            scope.spawn(move || {
                while let Some((index, (model, size))) = taken(next, models) {
                    let sent = sender.send((index, record(model, *size)));
                    sent.expect("the receiver lives until all threads have ended");
                }
            });
        }
    });
    drop(sender);
    let mut recorded: Vec<_> = receiver.into_iter().collect();
    recorded.sort_by_key(|(index, _)| *index);
    recorded.into_iter().map(|(_, pass)| pass).collect()
}

/// Returns the next item that no thread has taken yet.
fn taken<'a, T>(next: &AtomicUsize, items: &'a [T]) -> Option<(usize, &'a T)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    items.get(index).map(|item| (index, item))
}

/// Returns the bytes of an input and a target.
fn input_bytes(SyntheticInput { input, target }: &SyntheticInput) -> usize {
    let tensors = [&input.latents, &input.text.hidden, target];
    let optional = [&input.image, &input.text.pooled, &input.text.mask];
    let all = tensors.into_iter().chain(optional.into_iter().flatten());
    all.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes())
        .sum()
}
