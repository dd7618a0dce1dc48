//! Outputs of single layers, kept from one step to another: what caches inside of blocks have in common.

use std::cell::RefCell;
use std::fmt::Debug;
use std::rc::Rc;

use candle_core::{Result, Tensor};

use super::Work;
use crate::nn::recall::{self, LayerKind, Recall};

/// Action of a layer in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Turn {
    /// Computes.
    #[default]
    Compute,
    /// Computes, and keeps what a later step needs.
    Store,
    /// Answers with what was kept.
    Reuse,
}

/// Rule of a step: which layers do what, and how outputs are kept.
pub(super) trait Rule {
    /// Memory of a layer.
    type History: Default + Debug;

    /// Returns what layers of a kind do; None for kinds that the cache leaves alone in every step.
    fn turn(&self, kind: LayerKind) -> Option<Turn>;

    /// Keeps the outputs of a layer that computed.
    fn keep(&self, kept: &mut Self::History, outputs: &[Tensor]) -> Result<()>;

    /// Returns the outputs of a layer that does not compute.
    fn recall(&self, kept: &mut Self::History) -> Result<Vec<Tensor>>;
}

/// Outputs of all layers in the passes of one kind.
#[derive(Debug)]
pub(super) struct LayerOutputs<R: Rule>(Rc<RefCell<Layers<R>>>);

#[derive(Debug)]
struct Layers<R: Rule> {
    /// One for each layer, in their order.
    kept: Vec<R::History>,
    step: Option<Step<R>>,
}

/// A step under way.
#[derive(Debug)]
struct Step<R> {
    rule: R,
    /// Place of the next layer.
    next: usize,
    work: Work,
}

impl<R: Rule> Default for LayerOutputs<R> {
    fn default() -> Self {
        let layers = Layers {
            kept: Vec::new(),
            step: None,
        };
        Self(Rc::new(RefCell::new(layers)))
    }
}

impl<R: Rule + 'static> LayerOutputs<R> {
    /// Runs a step by a rule; says whether a layer reused what it kept.
    ///
    /// # Errors
    /// Those of `compute`.
    pub(super) fn run<T>(&self, rule: R, compute: impl FnOnce() -> Result<T>) -> Result<(T, Work)> {
        self.0.borrow_mut().step = Some(Step {
            rule,
            next: 0,
            work: Work::Computed,
        });
        let computed = recall::with(self.0.clone(), compute)?;
        let step = self.0.borrow_mut().step.take();
        Ok((computed, step.map_or(Work::Computed, |step| step.work)))
    }
}

impl<R: Rule> Recall for Layers<R> {
    fn outputs(&mut self, kind: LayerKind, work: &mut recall::Work) -> Result<Vec<Tensor>> {
        let Some((step, turn)) = self.step.as_mut().and_then(|step| {
            let turn = step.rule.turn(kind)?;
            Some((step, turn))
        }) else {
            return work();
        };
        if step.next == self.kept.len() {
            self.kept.push(R::History::default());
        }
        let kept = &mut self.kept[step.next];
        step.next += 1;
        if turn == Turn::Reuse {
            step.work = Work::Reused;
            return step.rule.recall(kept);
        }
        let outputs = work()?;
        match turn {
            Turn::Store => {
                let detached: Vec<Tensor> = outputs.iter().map(Tensor::detach).collect();
                step.rule.keep(kept, &detached)?;
            }
            Turn::Compute | Turn::Reuse => *kept = R::History::default(),
        }
        Ok(outputs)
    }
}
