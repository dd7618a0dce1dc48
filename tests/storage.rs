//! Matrices in few bits against the programs that wrote them: decoding bit for bit, codes of their own, products.
//! scripts/fixtures/make_storage.py writes what bitsandbytes, torchao and gguf-py make.

mod bitsandbytes; // 4 and 8 bits
mod cache; // what was stored while loading, for the next start
mod detect; // which tensors are stored, and as what
mod float8; // plain, scaled, torchao's
mod fused; // files whose matrices are several of the model's
mod ggml; // blocks of GGUF files
mod gguf; // headers, whole and broken
mod merged; // adapters in transformers in few bits
mod models; // whole transformers, asked and trained
mod on_the_fly; // dense checkpoints that are stored while they load
mod other_transformer; // GGUF and single files in place of a checkpoint's own
mod products; // layers over stored matrices
mod quantize; // forms by name, for what is dense
mod residual; // adapters that start at what is lost
mod round_trip; // GGUF files that are written and read
mod sizes; // memory
mod torchao; // int8 and float8 in safetensors
mod written; // what `vtrain quantize` writes

use std::path::PathBuf;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use vtrain::ops::stored::StoredMatrix;
use vtrain::rng::Rng;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/storage")
        .join(name)
}

/// The dense weights that the script stored.
fn draw((rows, columns): (usize, usize), dtype: DType) -> Tensor {
    let mut numbers = Rng::new(7).randn(rows * columns);
    numbers.iter_mut().for_each(|x| *x *= 0.05);
    let step = (numbers.len() / 7).max(1);
    numbers.iter_mut().step_by(step).for_each(|x| *x *= 20.0);
    if rows > 2 {
        numbers[columns..2 * columns].fill(0.0);
        numbers[2 * columns..3 * columns].iter_mut().for_each(|x| *x *= 1e-3);
    }
    let dense = Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap();
    dense.to_dtype(dtype).unwrap()
}

/// The bytes of a tensor on the CPU, as files have them.
fn bytes(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.contiguous().unwrap();
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout.contiguous_offsets().unwrap();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(x)) => x[start..end].iter().flat_map(|x| x.to_le_bytes()).collect(),
        Storage::Cpu(CpuStorage::BF16(x)) => x[start..end].iter().flat_map(|x| x.to_le_bytes()).collect(),
        Storage::Cpu(CpuStorage::F16(x)) => x[start..end].iter().flat_map(|x| x.to_le_bytes()).collect(),
        _ => panic!("a tensor in {:?}", tensor.dtype()),
    }
}

/// All rows, in the type of `X.out`, equal those bit for bit, and so does any piece of them.
#[track_caller]
fn assert_decodes_to(stored: &dyn StoredMatrix, out: &safetensors::tensor::TensorView) {
    let (rows, features) = stored.shape();
    assert_eq!(out.shape(), [rows, features]);
    let dtype = DType::try_from(out.dtype()).unwrap();
    let all = bytes(&stored.rows(0..rows, dtype).unwrap());
    assert_same(&all, out.data(), features * dtype.size_in_bytes());
    for (first, end) in [(0, 1), (rows / 2, rows), (rows - 1, rows), (rows, rows)] {
        let piece = stored.rows(first..end, dtype).unwrap();
        assert_eq!(piece.dims(), [end - first, features]);
        let row = features * dtype.size_in_bytes();
        assert!(bytes(&piece) == all[first * row..end * row], "rows {first}..{end}");
    }
    assert!(stored.rows(0..rows + 1, dtype).is_err());
}

#[track_caller]
fn assert_same(found: &[u8], expected: &[u8], row: usize) {
    assert_eq!(found.len(), expected.len());
    let differ: Vec<usize> = (0..found.len()).filter(|i| found[*i] != expected[*i]).collect();
    let first = differ.first().map(|at| (at / row, at % row));
    assert!(differ.is_empty(), "{} bytes differ, first at {first:?}", differ.len());
}

/// The hash of all rows in a type.
fn hash(stored: &dyn StoredMatrix, dtype: DType) -> Vec<u8> {
    let all = stored.rows(0..stored.shape().0, dtype).unwrap();
    Sha256::digest(bytes(&all)).to_vec()
}

/// A file of safetensors, with this change to its tensors.
fn changed(file: &[u8], change: impl Fn(&str, &mut Vec<usize>, &mut Vec<u8>) -> bool) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let mut kept = Vec::new();
    for (name, view) in tensors.iter() {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
        if change(name, &mut shape, &mut data) {
            kept.push((name.to_string(), view.dtype(), shape, data));
        }
    }
    let views = kept.iter().map(|(name, dtype, shape, data)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name, view)
    });
    safetensors::serialize(views, None).unwrap()
}
