//! The adapters that a run trains, and their moving average.

use candle_core::{Result, Tensor};

use crate::lora;
use crate::lora::diffusers::Named;
use crate::lora::trainable::LoraPair;
use crate::optim::ema::Ema;

/// The adapters of a run. Variables are counted A before B, layer by layer.
pub struct TrainedAdapters<'a> {
    /// Rank, alpha and layers.
    pub config: &'a lora::Config,
    /// Form in few bits of the base model, if it has one.
    pub base_form: Option<String>,
    /// Variables, a pair for each layer.
    pub pairs: Vec<LoraPair>,
    /// Moving average of the variables, with `optimizer.ema`.
    pub ema: Option<Ema>,
}

impl TrainedAdapters<'_> {
    /// Matrices as the last step left them.
    pub fn newest(&self) -> Vec<Named<'_>> {
        self.pairs.iter().map(LoraPair::named).collect()
    }

    /// Matrices that a run results in: the moving average where there is one.
    pub fn result(&self) -> Vec<Named<'_>> {
        let Some(ema) = &self.ema else {
            return self.newest();
        };
        let averages = self.pairs.iter().zip(ema.averages().chunks(2));
        averages
            .map(|(pair, halves)| Named {
                layer: &pair.layer,
                input: &pair.input,
                a: &halves[0],
                b: &halves[1],
            })
            .collect()
    }

    /// Names of the variables: `<layer>.lora_A`, `<layer>.lora_B`.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let halves = |pair: &LoraPair| ["lora_A", "lora_B"].map(|half| format!("{}.{half}", pair.layer));
        self.pairs.iter().flat_map(halves)
    }

    /// Sets every B to zero, so that the base model is left; returns their values.
    pub fn disable(&self) -> Result<Vec<Tensor>> {
        let learned = self.pairs.iter().map(|pair| pair.b.as_tensor().copy());
        let learned = learned.collect::<Result<Vec<_>>>()?;
        for pair in &self.pairs {
            pair.b.set(&pair.b.zeros_like()?)?;
        }
        Ok(learned)
    }

    /// Sets every B to what [`disable`](Self::disable) returned.
    pub fn enable(&self, learned: Vec<Tensor>) -> Result<()> {
        self.pairs.iter().zip(learned).try_for_each(|(pair, b)| pair.b.set(&b))
    }
}
