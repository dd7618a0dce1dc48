//! How the weights of a part of a checkpoint are loaded: their number format, where they live, and what is added to
//! them. Each is chosen without the others.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::adapter::Adapt;
use super::header_cache::HeaderCache;
use super::quantized_cache::QuantizedCache;
use super::residency::Residency;
use super::storage::quantize::Quantization;
use super::vae_memory::VaeMemory;

/// Settings for loading weights.
#[derive(Clone)]
pub struct Load {
    /// Number format of the tensors.
    pub dtype: DType,
    /// Device of the tensors.
    pub device: Device,
    /// Extent to which files are read.
    pub content: Content,
    /// Place of the blocks' frozen matrices.
    pub residency: Residency,
    /// Forms that matrices are stored in as they are read.
    pub quantization: PartQuantization,
    /// Cache of matrices in such forms.
    pub quantized_cache: Option<Arc<QuantizedCache>>,
    /// Headers that were read already, where only headers are.
    pub header_cache: Option<Arc<HeaderCache>>,
    /// Savings of memory in the autoencoder.
    pub vae: VaeMemory,
    /// Adapters of linear layers.
    pub adapters: Option<Arc<dyn Adapt>>,
    /// True if autoencoders on the CPU compute as on other devices ([`with_reference_ops`](Self::with_reference_ops)).
    pub reference_ops: bool,
}

/// Extent to which a checkpoint is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Everything.
    Numbers,
    /// Names and shapes alone: the resulting model cannot run, but shows whether it can be built.
    Headers,
    /// Names and shapes: the model runs and takes the memory of its activations, but its results mean nothing.
    Outlines,
}

/// Forms that the matrices of linear layers are stored in as they are read, part by part; None: as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PartQuantization {
    /// The transformer's.
    pub transformer: Option<Quantization>,
    /// The text encoder's.
    pub text_encoder: Option<Quantization>,
}

impl Load {
    /// Loads everything, without adapters.
    pub fn new(dtype: DType, device: &Device) -> Self {
        Self {
            dtype,
            device: device.clone(),
            content: Content::Numbers,
            residency: Residency::Whole,
            quantization: PartQuantization::default(),
            quantized_cache: None,
            header_cache: None,
            vae: VaeMemory::WHOLE,
            adapters: None,
            reference_ops: false,
        }
    }

    /// Loads names and shapes alone.
    pub fn headers(dtype: DType, device: &Device) -> Self {
        Self {
            content: Content::Headers,
            ..Self::new(dtype, device)
        }
    }

    /// Same, of names and shapes alone.
    pub fn of_headers(&self) -> Self {
        Self {
            content: Content::Headers,
            ..self.clone()
        }
    }

    /// Adds adapters.
    pub fn with_adapters(&self, adapters: Arc<dyn Adapt>) -> Self {
        Self {
            adapters: Some(adapters),
            ..self.clone()
        }
    }

    /// Sets the forms that matrices are stored in.
    pub fn with_quantization(&self, quantization: PartQuantization) -> Self {
        Self {
            quantization,
            ..self.clone()
        }
    }

    /// Sets the folder of the cache of matrices that are stored as they are read, if any are.
    pub fn with_quantized_cache(&self, folder: Option<&Path>) -> Self {
        let folder = folder.filter(|_| self.quantization != PartQuantization::default());
        Self {
            quantized_cache: folder.map(|folder| Arc::new(QuantizedCache::new(folder))),
            ..self.clone()
        }
    }

    /// Takes headers from a cache, where only headers are read.
    pub fn with_header_cache(&self, cache: Arc<HeaderCache>) -> Self {
        Self {
            header_cache: Some(cache),
            ..self.clone()
        }
    }

    /// Sets the savings of memory in the autoencoder.
    pub fn with_vae(&self, vae: VaeMemory) -> Self {
        Self { vae, ..self.clone() }
    }

    /// Makes autoencoders on the CPU compute as on other devices: in the weights' own type, with convolutions composed
    /// of candle's. Far slower; it shows what a GPU's types do, and the memory of a GPU, on a machine without one.
    pub fn with_reference_ops(&self) -> Self {
        Self {
            reference_ops: true,
            ..self.clone()
        }
    }

    /// Sets the place of the blocks' frozen matrices.
    pub fn with_residency(&self, residency: Residency) -> Self {
        Self {
            residency,
            ..self.clone()
        }
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let adapters = self.adapters.as_ref().map(|_| "adapters");
        write!(
            f,
            "Load({:?}, {:?}, {:?}, {:?}, {:?}, {:?}, {adapters:?})",
            self.dtype, self.device, self.content, self.residency, self.quantization, self.vae
        )
    }
}
