//! Outputs that attention and feed-forward layers of a transformer gave before, in place of new ones.
//!
//! These layers hand their work to [`outputs`] or [`output`]. Usually it is done, and that is all. Inside of [`with`], a
//! [`Recall`] answers for the layer: it may do the work and keep what comes out, or give back what it kept. Layers come in the
//! same order in every pass, so that their place in it is their name.
//!
//! Layers find it through a thread-local, without passing it through every block; it lives as long as `with`.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::{Result, Tensor};

thread_local! {
    static ANSWERS: RefCell<Option<Rc<RefCell<dyn Recall>>>> = const { RefCell::new(None) };
}

/// Kinds of layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// Attention of a sequence to itself; of clip and text as one sequence, too.
    SelfAttention,
    /// Attention of a clip to other tokens.
    CrossAttention,
    /// Feed-forward layer.
    FeedForward,
}

/// Work of a layer, which returns its outputs.
pub type Work<'a> = dyn FnMut() -> Result<Vec<Tensor>> + 'a;

/// Answers in place of layers.
pub trait Recall {
    /// Returns the outputs of the next layer, by its work or without.
    fn outputs(&mut self, kind: LayerKind, work: &mut Work) -> Result<Vec<Tensor>>;
}

/// Runs `compute` with `recall` answering for its layers.
pub fn with<T>(recall: Rc<RefCell<dyn Recall>>, compute: impl FnOnce() -> T) -> T {
    let _around = Around(ANSWERS.replace(Some(recall)));
    compute()
}

/// Returns the outputs of a layer that `work` computes.
pub fn outputs(kind: LayerKind, mut work: impl FnMut() -> Result<Vec<Tensor>>) -> Result<Vec<Tensor>> {
    // A layer inside of this one is part of its work.
    let answers = Around(ANSWERS.take());
    match &answers.0 {
        None => work(),
        Some(recall) => recall.borrow_mut().outputs(kind, &mut work),
    }
}

/// Same as [`outputs`], for a layer with one.
pub fn output(kind: LayerKind, mut work: impl FnMut() -> Result<Tensor>) -> Result<Tensor> {
    let mut outputs = outputs(kind, || Ok(vec![work()?]))?;
    Ok(outputs.remove(0))
}

/// Who answered before: again when this is dropped, also after a panic.
struct Around(Option<Rc<RefCell<dyn Recall>>>);

impl Drop for Around {
    fn drop(&mut self) {
        ANSWERS.set(self.0.take());
    }
}
