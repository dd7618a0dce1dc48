use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use vtrain::nn::storage::bitsandbytes_4bit::{self, FourBitCode};
use vtrain::nn::storage::ggml::{self, GgmlType};
use vtrain::nn::storage::{bitsandbytes_int8, float8, torchao};
use vtrain::ops::bf16::Isa;
use vtrain::ops::dropout::Mask;
use vtrain::ops::linear::{Frozen, LowRank};
use vtrain::ops::stored::{StoredMatrix, Weight};

use super::draw;

/// Every format, of the same matrix.
fn formats(dense: &Tensor) -> Vec<Arc<dyn StoredMatrix>> {
    let mut formats: Vec<Arc<dyn StoredMatrix>> = vec![
        Arc::new(bitsandbytes_4bit::quantize(dense, FourBitCode::Nf4, true, &Device::Cpu).unwrap()),
        Arc::new(bitsandbytes_4bit::quantize(dense, FourBitCode::Fp4, false, &Device::Cpu).unwrap()),
        Arc::new(bitsandbytes_int8::quantize(dense, &Device::Cpu).unwrap()),
        Arc::new(float8::quantize(dense, &Device::Cpu).unwrap()),
        Arc::new(torchao::quantize_int8(dense, &Device::Cpu).unwrap()),
        Arc::new(torchao::quantize_float8(dense, &Device::Cpu).unwrap()),
    ];
    for kind in GgmlType::ALL {
        formats.push(Arc::new(ggml::quantize(dense, kind, &Device::Cpu).unwrap()));
    }
    formats
}

/// The output of a layer with an adapter, and the gradients of x, A and B.
fn there_and_back(weight: Weight, x: &Tensor, dropped: Option<Mask>) -> Vec<Vec<f32>> {
    there_and_back_by(Isa::detect(), weight, x, dropped)
}

/// By these instructions where x is in bf16.
fn there_and_back_by(isa: Option<Isa>, weight: Weight, x: &Tensor, dropped: Option<Mask>) -> Vec<Vec<f32>> {
    let (out_features, features) = weight.shape().unwrap();
    let of = |shape, dtype| Var::from_tensor(&draw(shape, dtype)).unwrap();
    let (a, b) = (of((4, features), DType::F32), of((out_features, 4), DType::F32));
    let x = Var::from_tensor(x).unwrap();
    let bias = Some(draw((1, out_features), DType::BF16).squeeze(0).unwrap());
    let layer = Frozen::new(weight, bias).multiplying_by(isa);
    let adapter = LowRank {
        a: &a,
        b: &b,
        scale: 0.5,
    };
    let adapted = layer.forward_dropping(&x, adapter, dropped).unwrap();
    let plain = layer.forward(&x).unwrap();
    let factors = draw(plain.dims2().unwrap(), DType::F32);
    let sum = |y: &Tensor| (y.to_dtype(DType::F32)? * &factors)?.sum_all();
    let loss = (sum(&adapted).unwrap() + sum(&plain).unwrap()).unwrap();
    let grads = loss.backward().unwrap();
    let values = |x: &Tensor| {
        x.to_dtype(DType::F32)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap()
    };
    let gradients = [&x, &a, &b].map(|x| values(grads.get(x).unwrap()));
    [vec![values(&adapted), values(&plain)], gradients.to_vec()].concat()
}

#[test]
fn a_row_is_the_same_alone_and_among_others_that_threads_share_out() {
    // 70 rows of 256 are more numbers than a thread decodes at a time; in 4 bits 150 of 130 begin in the middle of blocks.
    let spanning = bitsandbytes_4bit::quantize(&draw((150, 130), DType::F32), FourBitCode::Nf4, true, &Device::Cpu);
    let mut formats = formats(&draw((70, 256), DType::F32));
    formats.push(Arc::new(spanning.unwrap()));
    for stored in formats {
        let (rows, _) = stored.shape();
        let all: Vec<Vec<f32>> = stored.rows(0..rows, DType::F32).unwrap().to_vec2().unwrap();
        for (i, row) in all.iter().enumerate() {
            let alone: Vec<Vec<f32>> = stored.rows(i..i + 1, DType::F32).unwrap().to_vec2().unwrap();
            assert_eq!(alone[0], *row, "{stored:?}, row {i}");
        }
    }
}

#[test]
fn a_layer_over_a_stored_matrix_is_that_over_its_decoded_one() {
    // 4200 rows of 256 are more than a strip of 2^20 numbers.
    for (rows, dtype) in [(70, DType::F32), (70, DType::BF16), (4200, DType::F32)] {
        let x = draw((3, 256), dtype);
        for stored in formats(&draw((rows, 256), DType::BF16)) {
            let dense = stored.rows(0..rows, DType::F32).unwrap();
            for dropped in [None, Some(Mask::new(0.3, 5, 2))] {
                let expected = there_and_back(dense.clone().into(), &x, dropped);
                let found = there_and_back(Weight::Stored(stored.clone()), &x, dropped);
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let scale = expected.iter().fold(1e-30f32, |most, x| most.max(x.abs()));
                    let most = if dtype == DType::BF16 { 0.01 } else { 1e-5 };
                    let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= most * scale);
                    assert!(close, "{stored:?} {dtype:?}, part {i}");
                }
            }
        }
    }
}

#[test]
fn in_bf16_a_layer_over_a_stored_matrix_is_bit_by_bit_that_over_its_numbers_in_bf16() {
    for isa in Isa::available() {
        let x = draw((3, 256), DType::BF16);
        let mut all = formats(&draw((70, 256), DType::BF16));
        if isa != Isa::Emulated {
            // More rows than a strip has, where that does not take long.
            let large = float8::quantize(&draw((4200, 256), DType::BF16), &Device::Cpu);
            all.push(Arc::new(large.unwrap()));
        }
        for stored in all {
            let dense = stored.rows(0..stored.shape().0, DType::BF16).unwrap();
            let expected = there_and_back_by(Some(isa), dense.into(), &x, None);
            let found = there_and_back_by(Some(isa), Weight::Stored(stored.clone()), &x, None);
            assert!(found == expected, "{stored:?} by {isa:?}");
        }
    }
}
