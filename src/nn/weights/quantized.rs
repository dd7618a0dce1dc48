//! Storing of matrices in few bits as they are read.

use std::sync::Arc;

use candle_core::{Device, Error, Result, Tensor};

use super::Weights;
use crate::nn::checkpoint::Size;
use crate::nn::quantized_cache::CachedMatrices;
use crate::nn::storage::quantize::{self, Quantization};
use crate::ops::stored::StoredMatrix;

/// Form that the matrices of linear layers are stored in as they are read.
#[derive(Clone)]
pub(super) struct Quantized {
    form: Quantization,
    /// Parts of the paths of layers that stay dense, or their beginnings behind `^`.
    dense: Arc<[&'static str]>,
    /// Matrices of an earlier start.
    cached: Option<Arc<CachedMatrices>>,
}

impl Quantized {
    fn takes(&self, path: &str) -> bool {
        !quantize::stays_dense(&self.dense, path)
    }

    /// Logs what was read from the cache, and written.
    pub(super) fn report(&self) {
        if let Some(cached) = &self.cached {
            cached.report();
        }
    }
}

impl Weights {
    /// Stores the matrices of linear layers in `form` as they are read, but those that the checkpoint has in few bits
    /// already, and those whose path contains one of `dense`, or begins with what is behind a `^` there.
    pub fn quantized(mut self, form: Option<Quantization>, dense: &[&'static str]) -> Self {
        let dense = dense.into();
        self.quantization = form.map(|form| Quantized {
            form,
            dense,
            cached: None,
        });
        let cached = form.and_then(|form| self.cached(form));
        if let Some(quantized) = &mut self.quantization {
            quantized.cached = cached;
        }
        self
    }

    /// Returns the cache of this checkpoint's matrices in a form; None without a cache, and if the files cannot be read.
    fn cached(&self, form: Quantization) -> Option<Arc<CachedMatrices>> {
        let cache = self.quantized_cache.as_ref().filter(|_| self.has_numbers())?;
        let checkpoint = self.checkpoint()?;
        let bytes = checkpoint.sizes().filter_map(|(name, size)| match size {
            Size::Dense(shape) => self.quantized_bytes(name, &shape),
            Size::Stored(_) => None,
        });
        match cache.matrices(&checkpoint.paths(), form, self.dtype, bytes.sum()) {
            Ok(cached) => Some(Arc::new(cached)),
            Err(error) => {
                log::warn!("{error:#}; weights in {} are not cached", form.name());
                None
            }
        }
    }

    /// Returns the bytes of a dense tensor in the form that it will be stored in; None if it stays dense.
    pub(super) fn quantized_bytes(&self, name: &str, shape: &[usize]) -> Option<u64> {
        let (quantized, &[rows, columns]) = (self.quantization.as_ref()?, shape) else {
            return None;
        };
        quantized.takes(name).then(|| quantized.form.bytes((rows, columns)))
    }

    /// Returns the form that the matrix `name` is to be stored in; None for one that has a form already.
    pub(super) fn quantization_of(&self, name: &str) -> Option<Quantization> {
        let path = self.path(name);
        let stored = self.checkpoint().is_some_and(|checkpoint| checkpoint.is_stored(&path));
        let quantized = self.quantization.as_ref();
        let quantized = quantized.filter(|quantized| !stored && quantized.takes(&path));
        quantized.map(|quantized| quantized.form)
    }

    /// Reads the matrix `name` of this shape, and stores it in `form` on `device`; or reads it from the cache, if nothing is added to it
    /// and no adapter starts at what it loses.
    pub(super) fn quantized_matrix(
        &self,
        form: Quantization,
        shape: (usize, usize),
        name: &str,
        device: &Device,
    ) -> Result<Arc<dyn StoredMatrix>> {
        let path = self.path(name);
        let cached = self
            .quantization
            .as_ref()
            .and_then(|quantized| quantized.cached.clone());
        let dims = [shape.0, shape.1];
        let layer = self.layer(&dims);
        let adapters = self.adapters.as_ref();
        let starts_at_loss = adapters.map_or(Ok(false), |adapters| adapters.needs_dense(&layer))?;
        let cached = match self.has_delta(&path, &shape.into())? {
            true => None,
            false => cached,
        };
        if let Some(cached) = &cached
            && !starts_at_loss
            && self
                .checkpoint()
                .is_some_and(|checkpoint| checkpoint.request(&path, &shape.into()))
            && let Some(stored) = cached.read(&path, shape, device)
        {
            return Ok(stored);
        }
        let dense = self.get_on(&Device::Cpu, shape.into(), name)?;
        let stored = match &cached {
            Some(cached) => cached.store(&path, &dense, device),
            None => form.store(&dense, device),
        };
        let stored =
            stored.map_err(|error| Error::Msg(format!("storing the matrix {path} as {}: {error}", form.name())))?;
        if let Some(adapters) = adapters {
            adapters.quantized(&layer, &dense, &*stored)?;
        }
        Ok(stored)
    }

    /// Reads the bias of a linear layer (out): rounded to fp8 where plain fp8 is the form of its matrix, as diffusers'
    /// layerwise casting does.
    pub fn bias(&self, out_features: usize) -> Result<Tensor> {
        let bias = self.get(out_features, "bias")?;
        match self.quantization_of("weight") {
            Some(Quantization::Fp8) if self.has_numbers() => {
                let rounded = Quantization::Fp8.store(&bias.unsqueeze(0)?, &self.device)?;
                rounded.rows(0..1, self.dtype)?.squeeze(0)
            }
            _ => Ok(bias),
        }
    }
}
