//! Trained layers of a run: those named by `lora.target_modules`, compared with the adapters in `lora.init`.
//!
//! A run queries this while its transformer loads; a check queries it while the transformer is built from headers
//! alone. Both get the same answers.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use candle_core::{Error, Result};

use super::adapters::{Adapter, AdapterFile};
use super::names::Names;
use super::target::{self, Matcher};
use super::{Config, Init, file};
use crate::nn::adapter::{Adapt, LayerId, LoraLayer, WeightForm};

/// Trained layers. As an [`Adapt`] it adds no adapters, and only records the layers.
#[derive(Debug)]
pub struct Selection {
    config: Config,
    targets: Matcher,
    init: Option<AdapterFile>,
    seen: Mutex<SeenLayer>,
}

/// Layers that a model has requested while loading.
#[derive(Debug, Default)]
struct SeenLayer {
    /// Paths of all linear layers, targets or not.
    layers: Vec<String>,
    selected: BTreeSet<String>,
    /// Layers for which the `init` file has an adapter of another shape.
    misfits: Vec<String>,
    /// Selected layers that the checkpoint has in few bits.
    stored: Vec<String>,
    /// Number of selected layers that are stored in few bits as they are read.
    quantized: usize,
}

/// Problems of `lora:`, each a line that begins with the key.
#[derive(Debug)]
pub struct AdapterMismatch(pub Vec<String>);

impl std::fmt::Display for AdapterMismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for AdapterMismatch {}

impl Selection {
    /// Reads the settings of a run, and the `init` file, which may use the names of these families.
    ///
    /// # Errors
    /// Fails for invalid `target_modules`, and for an unreadable `init` file.
    pub fn new(config: &Config, families: &[&'static Names]) -> std::result::Result<Self, AdapterMismatch> {
        let targets = config.target_modules.matcher();
        let targets = targets.map_err(|message| format!("lora.target_modules: {message}"));
        let file = match &config.init {
            Some(Init::File(path)) => Some(path),
            Some(Init::Residual) | None => None,
        };
        let init = file.map(|path| file::read(path, families)?.apply(path, 1.0));
        let init = init.transpose().map_err(|error| format!("lora.init: {error:#}"));
        match (targets, init) {
            (Ok(targets), Ok(init)) => Ok(Self {
                config: config.clone(),
                targets,
                init,
                seen: Mutex::default(),
            }),
            (targets, init) => Err(AdapterMismatch(targets.err().into_iter().chain(init.err()).collect())),
        }
    }

    /// Records a layer, and returns whether it is trained. Each layer is requested once.
    ///
    /// # Errors
    /// Fails for an expression that gave up on this path.
    pub fn selects(&self, layer: &LayerId) -> Result<bool> {
        let (path, in_features, out_features) = (layer.path, layer.in_features(), layer.out_features());
        let mut seen = self.seen();
        seen.layers.push(path.to_string());
        if !self.targets(layer)? {
            return Ok(false);
        }
        match layer.form {
            WeightForm::Dense => {}
            WeightForm::Stored => seen.stored.push(path.to_string()),
            WeightForm::Quantized => seen.quantized += 1,
        }
        if let Some(Adapter { a, b, .. }) = self.init(path) {
            let rank = self.config.rank;
            // Another rank is reported by `finish`, once for all layers.
            let own = a.dims().first().copied().unwrap_or(rank);
            let (flat_a, flat_b) = (a.dims().iter().skip(1).product::<usize>(), b.elem_count());
            if flat_a != in_features || b.dims().first() != Some(&out_features) || flat_b != out_features * own {
                seen.misfits.push(format!(
                    "the adapter of {path} is {:?} and {:?}, but the layer needs {:?} and {:?}",
                    a.dims(),
                    b.dims(),
                    (rank, in_features),
                    (out_features, rank)
                ));
            }
        }
        seen.selected.insert(path.to_string());
        Ok(true)
    }

    /// Returns whether a layer is trained, without recording it.
    ///
    /// # Errors
    /// Fails for an expression that gave up on this path.
    pub fn targets(&self, layer: &LayerId) -> Result<bool> {
        let matches = self.targets.matches(layer.path);
        let matches = matches.map_err(|error| Error::Msg(format!("lora.target_modules: {error}")))?;
        // As in PEFT, all linear layers are not the convolutions among them.
        Ok(matches && !(layer.is_convolution() && self.config.target_modules.is_all_linear()))
    }

    /// Returns true with `lora.init: residual`.
    pub fn starts_from_residual(&self) -> bool {
        self.config.init == Some(Init::Residual)
    }

    /// Returns the adapter that the `init` file has for a layer.
    pub fn init(&self, path: &str) -> Option<&Adapter> {
        self.init.as_ref()?.layers.get(path)
    }

    /// Returns true with `lora.init`, where A and B come from a file.
    pub fn starts_from_file(&self) -> bool {
        self.init.is_some()
    }

    /// Returns true if any layer has been requested: without, nothing is known.
    pub fn has_seen_layers(&self) -> bool {
        !self.seen().layers.is_empty()
    }

    /// Returns the trained layers among those requested so far.
    pub fn selected(&self) -> Vec<String> {
        self.seen().selected.iter().cloned().collect()
    }

    /// Checks, once the model is built, that all targets exist and the `init` file matches them.
    ///
    /// # Errors
    /// Lists every problem: a target that no layer matched, with the possible names; adapters in the `init` file of
    /// another rank, scale or shape, adapters for other layers, and layers without an adapter in the file.
    pub fn finish(&self) -> anyhow::Result<()> {
        let seen = self.seen();
        let mut wrong: Vec<String> = self.unmatched(&seen)?.into_iter().collect();
        if let Some(file) = &self.init {
            let faults = scale_faults(file, &self.config)
                .into_iter()
                .chain(shape_fault(&seen.misfits))
                .chain(layer_faults(file, &seen.selected));
            wrong.extend(faults.map(|fault| format!("lora.init: {}: {fault}", file.path.display())));
        }
        if self.starts_from_residual() {
            wrong.extend(residual_fault(&seen));
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(AdapterMismatch(wrong).into()),
        }
    }

    /// Returns the targets that no layer matched.
    fn unmatched(&self, seen: &SeenLayer) -> anyhow::Result<Option<String>> {
        let idle = self.targets.unmatched(&seen.layers)?;
        Ok(match (idle.is_empty(), seen.layers.first()) {
            (true, _) => None,
            (false, None) => Some("lora.target_modules: the model has no linear layer that could be trained".into()),
            (false, Some(first)) => Some(format!(
                "lora.target_modules: no layer matches '{}'; the model's linear layers end in {}, the first is {first}",
                idle.join("', '"),
                target::kinds(&seen.layers),
            )),
        })
    }

    fn seen(&self) -> MutexGuard<'_, SeenLayer> {
        self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Adapt for Selection {
    fn adapt(&self, layer: &LayerId) -> Result<Vec<LoraLayer>> {
        self.selects(layer).map(|_| Vec::new())
    }
}

/// Explains why adapters from the file cannot be trained further: untrainable parts, rank and scale, the first of each.
fn scale_faults(file: &AdapterFile, config: &Config) -> Vec<String> {
    let first = |wrong: &dyn Fn(&Adapter) -> bool| file.layers.iter().find(|(_, adapter)| wrong(adapter));
    let mut faults = Vec::new();
    if let Some(parameter) = file.deltas.keys().next() {
        faults.push(format!(
            "{parameter} is added to as a whole, and {} parameters more, which do not learn; fold the file into the model with \
             vtrain lora merge, and train on that",
            file.deltas.len() - 1
        ));
    }
    if let Some((layer, adapter)) = first(&|adapter| adapter.rank() != config.rank) {
        faults.push(format!(
            "the adapter of {layer} has rank {}, but lora.rank is {}",
            adapter.rank(),
            config.rank
        ));
    }
    if let Some((layer, adapter)) = first(&|adapter| adapter.alpha != config.alpha) {
        faults.push(format!(
            "the adapter of {layer} has alpha {}, but lora.alpha is {}; make them equal, since alpha scales what was learned",
            adapter.alpha, config.alpha
        ));
    }
    if let Some((_, adapter)) = first(&|adapter| adapter.use_rslora != config.use_rslora) {
        faults.push(format!(
            "was trained with use_rslora: {}, but lora.use_rslora is {}",
            adapter.use_rslora, config.use_rslora
        ));
    }
    faults
}

/// Explains why there is nothing that adapters could start from.
fn residual_fault(seen: &SeenLayer) -> Option<String> {
    match (seen.stored.first(), seen.quantized) {
        (Some(first), _) => Some(format!(
            "lora.init: residual: {} of {} layers are in few bits in the checkpoint already, first {first}, and what they have \
             lost is not known; take the dense checkpoint, and store it in few bits by model.quantization",
            seen.stored.len(),
            seen.selected.len()
        )),
        (None, 0) => Some(
            "lora.init: residual: no layer that is trained is stored in few bits, so nothing is lost; set model.quantization, or \
             remove lora.init"
                .into(),
        ),
        (None, _) => None,
    }
}

/// Returns the first adapter whose shape differs from its layer's.
fn shape_fault(misfits: &[String]) -> Option<String> {
    let more = match misfits.len() {
        0 | 1 => String::new(),
        count => format!(" (and {} more); it was made for another model", count - 1),
    };
    misfits.first().map(|first| first.clone() + &more)
}

/// Returns the differences between the file's layers and the run's trained ones.
fn layer_faults(file: &AdapterFile, trained: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let missing: Vec<_> = trained
        .iter()
        .filter(|layer| !file.layers.contains_key(*layer))
        .collect();
    if let Some(first) = missing.first() {
        faults.push(format!(
            "{} of {} layers have no adapter in this file, first {first}; lora.target_modules must name the layers that it \
             was trained on",
            missing.len(),
            trained.len()
        ));
    }
    let extra: Vec<_> = file.layers.keys().filter(|layer| !trained.contains(*layer)).collect();
    if let Some(first) = extra.first() {
        faults.push(format!(
            "{} of {} adapters belong to layers that this run does not train, first {first}; lora.target_modules must name \
             them, too",
            extra.len(),
            file.layers.len()
        ));
    }
    faults
}
