//! A tensor of the model in a file: a whole tensor there, or rows of a fused one.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, bail};
use candle_core::safetensors::Load;
use candle_core::{DType, Device, Error, Result, Tensor};
use safetensors::tensor::TensorView;

use super::fused_rows::{self, Reordered, Rows};
use super::tensor_file::TensorFile;
use crate::finite::NotFinite;
use crate::ops::bytes::Origin;
use crate::ops::stored::StoredMatrix;

/// JSON beside a matrix, which is not about single rows.
const DESCRIPTION: &str = ".comfy_quant";

/// Part of a tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cut {
    /// All of it.
    Whole,
    /// These of its rows.
    Rows(Vec<Range<usize>>),
}

impl Cut {
    /// Finds the part of the tensor `name` that belongs to `rows` of its layer.
    ///
    /// # Errors
    /// Fails for a layer that cannot be divided so, and for a tensor whose numbers do not belong to rows.
    pub(super) fn of(file: &TensorFile, name: &str, rows: Rows) -> anyhow::Result<Self> {
        if rows == Rows::All || name.ends_with(DESCRIPTION) {
            return Ok(Self::Whole);
        }
        let layer = name.rsplit_once('.').map_or(name, |(layer, _)| layer);
        let shape = file.shape(name).unwrap_or_default();
        if shape.iter().product::<usize>() == 1 {
            return Ok(Self::Whole); // a scale of the whole matrix
        }
        let fused = ["weight", "_weight_qdata"].map(|weight| format!("{layer}.{weight}"));
        let Some(&[outputs, inputs]) = fused.iter().find_map(|name| file.shape(name)).as_deref() else {
            bail!("the tensor {name} is of a layer that is several here, and that has no matrix in the file");
        };
        let ranges = rows.ranges(outputs, Some(inputs)).with_context(|| {
            format!("the matrix of {layer} [{outputs}, {inputs}] cannot be divided into the layers that it is here")
        })?;
        // A number may belong to several rows.
        let first = shape
            .first()
            .copied()
            .filter(|first| *first > 0 && outputs.is_multiple_of(*first));
        let block = first.map(|first| outputs / first);
        let fits = |block: &usize| {
            let bounds = ranges.iter().flat_map(|range| [range.start, range.end]);
            bounds.into_iter().all(|bound| bound.is_multiple_of(*block))
        };
        let block = block.filter(fits).with_context(|| {
            format!("the tensor {name} {shape:?} is in a form whose rows cannot be told apart, and its layer is several here")
        })?;
        let ranges = ranges.into_iter().map(|range| range.start / block..range.end / block);
        Ok(Self::Rows(ranges.collect()))
    }
}

/// A tensor of the model, in its file.
#[derive(Clone, Copy)]
pub(super) struct FileTensor<'a> {
    pub(super) file: &'a TensorFile,
    /// Name in the file.
    pub(super) name: &'a str,
    pub(super) cut: &'a Cut,
}

impl<'a> FileTensor<'a> {
    /// Returns its rows in the file if they are neighbours: a part of the tensor there.
    fn neighbours(&self) -> Option<&'a Range<usize>> {
        match self.cut {
            Cut::Rows(ranges) if ranges.len() == 1 => ranges.first(),
            _ => None,
        }
    }

    /// Returns the first byte, and the number of bytes, in the tensor of the file.
    fn bytes_there(&self) -> Option<Range<usize>> {
        let whole = usize::try_from(self.file.bytes(self.name)).ok()?;
        let Some(rows) = self.neighbours() else {
            return Some(0..whole);
        };
        let all = self.file.shape(self.name)?.first().copied().filter(|all| *all > 0)?;
        Some(whole / all * rows.start..whole / all * rows.end)
    }

    /// Returns its shape.
    pub(super) fn shape(&self) -> Option<Vec<usize>> {
        let mut shape = self.file.shape(self.name)?;
        if let Cut::Rows(ranges) = self.cut {
            *shape.first_mut()? = ranges.iter().map(Range::len).sum();
        }
        Some(shape)
    }

    /// Returns true for a tensor of this shape.
    pub(super) fn has(&self, shape: &[usize]) -> bool {
        match self.cut {
            Cut::Whole => self.file.has(self.name, shape),
            Cut::Rows(_) => self.shape().is_some_and(|own| own == shape),
        }
    }

    /// Returns its bytes in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes_there().map_or(0, |bytes| bytes.len() as u64)
    }

    /// Returns a tensor of safetensors as it lies there; one whose rows are no neighbours in the file's order.
    pub(super) fn view(&self) -> Result<TensorView<'a>> {
        let view = self.file.view(self.name)?;
        let (Some(_), Some(shape), Some(bytes)) = (self.neighbours(), self.shape(), self.bytes_there()) else {
            return Ok(view);
        };
        let Some(data) = view.data().get(bytes) else {
            return Err(Error::Msg(format!("the tensor {} ends early", self.name)));
        };
        Ok(TensorView::new(view.dtype(), shape, data)?)
    }

    /// Returns where its bytes lie in the file, if they are neighbours.
    pub(super) fn origin(&self) -> Option<Origin> {
        let origin = self.file.origin(self.name)?;
        let start = match self.cut {
            Cut::Rows(ranges) if ranges.len() > 1 => None,
            _ => Some(self.bytes_there()?.start as u64),
        };
        Some(Origin {
            offset: origin.offset + start?,
            ..origin
        })
    }

    /// Returns the number format of a dense tensor of safetensors.
    pub(super) fn dtype(&self) -> Option<DType> {
        self.file.dtype(self.name)
    }

    /// Returns true for a matrix of GGUF's blocks.
    pub(super) fn is_blocks(&self) -> bool {
        self.file.blocks(self.name).is_some()
    }

    /// Reads a matrix of GGUF's blocks, of this shape, as it is stored; None for other tensors.
    pub(super) fn matrix(&self, shape: (usize, usize), device: &Device) -> Result<Option<Arc<dyn StoredMatrix>>> {
        let Some(file) = self.file.blocks(self.name) else {
            return Ok(None);
        };
        let read = match self.neighbours() {
            Some(rows) => file.matrix_rows(self.name, rows.clone(), shape.1, device),
            None => file.matrix(self.name, shape, device),
        };
        let matrix = read.map_err(|error| Error::Msg(format!("{error:#}")))?;
        Ok(Some(self.reordered(matrix.placed()?)))
    }

    /// Returns a matrix that has the file's order in the layer's.
    pub(super) fn reordered(&self, matrix: Arc<dyn StoredMatrix>) -> Arc<dyn StoredMatrix> {
        match self.cut {
            Cut::Rows(ranges) if ranges.len() > 1 => Arc::new(Reordered::new(matrix, ranges)),
            _ => matrix,
        }
    }

    /// Reads a tensor, which [`has`](Self::has) this shape.
    pub(super) fn read(&self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        match (self.cut, self.neighbours(), self.file) {
            (Cut::Whole, ..) => self.file.read(self.name, shape, dtype, device),
            (Cut::Rows(ranges), None, _) => fused_rows::take(&self.file.read(self.name, shape, dtype, device)?, ranges),
            (_, Some(rows), TensorFile::Gguf(file)) => {
                let read = file.tensor_rows(self.name, rows.clone(), dtype, device);
                read.map_err(|error| Error::Msg(format!("{error:#}")))
            }
            (_, Some(_), TensorFile::Safetensors(..)) => {
                let tensor = self.view()?.load(device)?.to_dtype(dtype)?;
                self.unload();
                Ok(tensor)
            }
        }
    }

    /// Releases the mapped bytes of a tensor that was read.
    pub(super) fn unload(&self) {
        self.file.unload(self.name);
    }

    /// Returns the first number of the tensor in the file that is not finite.
    pub(super) fn not_finite(&self) -> Option<NotFinite> {
        self.file.not_finite(self.name)
    }
}
