//! A folder of weights, tensor by tensor: dense ones as they lie there, matrices in few bits whole.

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Dtype;

use super::checkpoint::Checkpoint;
use super::storage::Parts;
use super::storage::layout::TensorSpec;
use super::storage::origin::Origin;
use super::weight_files::WeightFolder;

/// A folder of weights, mapped.
pub struct TensorFolder {
    checkpoint: Checkpoint,
    tensors: Vec<SourceTensor>,
}

/// A tensor, or a matrix in few bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTensor {
    /// Path, such as `blocks.0.ff.weight`.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Tensors of the file that it consists of.
    pub parts: Vec<TensorSpec>,
    /// Content.
    pub content: Content,
}

/// Content of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Numbers.
    Dense(Dtype),
    /// A matrix in few bits.
    Stored(Origin),
}

impl SourceTensor {
    /// Returns rows and columns of a matrix.
    pub fn matrix(&self) -> Option<(usize, usize)> {
        match self.shape[..] {
            [rows, columns] => Some((rows, columns)),
            _ => None,
        }
    }

    /// Returns the bytes that it takes in the file.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(TensorSpec::bytes).sum()
    }

    /// Returns the type of its numbers, before it was stored in few bits if the file says so; None for what is no number
    /// with a point.
    pub fn dtype(&self) -> Option<DType> {
        match &self.content {
            Content::Dense(Dtype::F64) => Some(DType::F64),
            Content::Dense(Dtype::F32) => Some(DType::F32),
            Content::Dense(Dtype::F16) => Some(DType::F16),
            Content::Dense(Dtype::BF16) => Some(DType::BF16),
            Content::Dense(_) => None,
            Content::Stored(origin) => origin.dtype,
        }
    }

    /// Returns true for a matrix in few bits.
    pub fn is_stored(&self) -> bool {
        matches!(self.content, Content::Stored(_))
    }
}

impl TensorFolder {
    /// Maps the files of a folder.
    ///
    /// # Errors
    /// Fails without safetensors, for a shard that is missing, and for headers and forms that are not read.
    pub fn open(folder: &WeightFolder) -> anyhow::Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let tensors = tensors(&checkpoint).with_context(|| folder.display().to_string())?;
        Ok(Self { checkpoint, tensors })
    }

    /// Returns its tensors, by name.
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// Returns what the metadata of the files says of a tensor.
    pub fn description(&self, name: &str) -> Option<&str> {
        self.checkpoint.metadata.get(name).map(String::as_str)
    }

    /// Reads a tensor in a type, on the CPU.
    ///
    /// # Errors
    /// Fails for parts that are missing or of another size.
    pub fn dense(&self, tensor: &SourceTensor, dtype: DType) -> anyhow::Result<Tensor> {
        let shape = tensor.shape.as_slice().into();
        Ok(self.checkpoint.read(&tensor.name, &shape, dtype, &Device::Cpu)?)
    }

    /// Calls `each` with the bytes of every part of a tensor, as they lie in the file.
    ///
    /// # Errors
    /// Those of `each`.
    pub fn parts(
        &self,
        tensor: &SourceTensor,
        mut each: impl FnMut(&str, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for spec in &tensor.parts {
            let part = self.checkpoint.part(&spec.name)?;
            each(&spec.name, part.data())?;
            self.checkpoint.unload(&spec.name);
        }
        Ok(())
    }
}

fn tensors(checkpoint: &Checkpoint) -> anyhow::Result<Vec<SourceTensor>> {
    let spec = |name: &String| -> anyhow::Result<TensorSpec> {
        let part = checkpoint.part(name)?;
        Ok(TensorSpec::new(name, part.dtype(), part.shape()))
    };
    let (mut tensors, mut of_stored) = (Vec::new(), std::collections::BTreeSet::new());
    for (name, stored) in checkpoint.forms() {
        let origin = Origin::of(stored, checkpoint, &checkpoint.metadata, name);
        let origin = origin.with_context(|| name.clone())?;
        of_stored.extend(&stored.parts);
        tensors.push(SourceTensor {
            name: name.clone(),
            shape: vec![origin.shape.0, origin.shape.1],
            parts: stored.parts.iter().map(spec).collect::<anyhow::Result<_>>()?,
            content: Content::Stored(origin),
        });
    }
    let markers = checkpoint.markers();
    for name in checkpoint.names() {
        if of_stored.contains(name) || markers.contains(name) {
            continue;
        }
        let spec = spec(name)?;
        tensors.push(SourceTensor {
            name: name.clone(),
            shape: spec.shape.clone(),
            content: Content::Dense(spec.dtype),
            parts: vec![spec],
        });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}
