use std::fs;

use candle_core::{DType, Device};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use vtrain::nn::gguf::GgufFile;
use vtrain::nn::storage::ggml::{self, GgmlType};

use super::{assert_decodes_to, draw, fixture};

/// Types whose blocks gguf-py makes.
const MADE: [GgmlType; 8] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
];

fn shape(kind: GgmlType) -> (usize, usize) {
    if MADE.contains(&kind) { (3, 64) } else { (2, 256) }
}

#[test]
fn every_type_decodes_as_in_gguf_py() {
    let file = GgufFile::open(&fixture("ggml.gguf")).unwrap();
    let outs = fs::read(fixture("ggml_out.safetensors")).unwrap();
    let outs = SafeTensors::deserialize(&outs).unwrap();
    for kind in GgmlType::ALL {
        let name = format!("blocks.0.{kind}.weight");
        let stored = file.matrix(&name, shape(kind), &Device::Cpu).unwrap();
        assert_decodes_to(&stored, &outs.tensor(kind.name()).unwrap());
    }
}

#[test]
fn blocks_are_made_as_in_gguf_py() {
    let file = GgufFile::open(&fixture("ggml.gguf")).unwrap();
    let outs = fs::read(fixture("ggml_out.safetensors")).unwrap();
    let outs = SafeTensors::deserialize(&outs).unwrap();
    for kind in MADE {
        let expected = file
            .matrix(&format!("blocks.0.{kind}.weight"), (3, 64), &Device::Cpu)
            .unwrap();
        let made = ggml::quantize(&draw((3, 64), DType::F32), kind, &Device::Cpu).unwrap();
        assert_eq!(made.format().bytes, expected.format().bytes, "{kind}");
        let large = ggml::quantize(&draw((130, 128), DType::F32), kind, &Device::Cpu).unwrap();
        let hash = outs.tensor(&format!("{kind}.hash")).unwrap();
        assert_eq!(Sha256::digest(&large.format().bytes).to_vec(), hash.data(), "{kind}");
    }
}

/// Relative errors that are known for weights of a normal distribution.
#[test]
fn every_type_errs_as_much_as_it_should() {
    use vtrain::ops::stored::StoredMatrix;
    let numbers = vtrain::rng::Rng::new(1).randn(32 * 512);
    let dense = candle_core::Tensor::from_vec(numbers, (32, 512), &Device::Cpu).unwrap();
    for (kind, error) in [
        (GgmlType::F32, 0.0),
        (GgmlType::Q8_0, 0.0054),
        (GgmlType::Q6K, 0.0185),
        (GgmlType::Q5K, 0.037),
        (GgmlType::Q5_0, 0.043),
        (GgmlType::Q4K, 0.0745),
        (GgmlType::Q4_1, 0.078),
        (GgmlType::Q4_0, 0.0865),
        (GgmlType::Q3K, 0.152),
        (GgmlType::Q2K, 0.290),
    ] {
        let decoded = ggml::quantize(&dense, kind, &Device::Cpu).unwrap();
        assert_eq!(Some(decoded.bytes()), kind.bytes(32 * 512));
        let decoded = decoded.rows(0..32, DType::F32).unwrap();
        let norm = |x: &candle_core::Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let found = norm(&(&dense - decoded).unwrap()) / norm(&dense);
        assert!((found - error).abs() <= 0.05 * error, "{kind}: {found}");
    }
}

#[test]
fn numbers_too_large_for_scales_in_f16_are_refused() {
    let dense = |x: f32| candle_core::Tensor::full(x, (2, 256), &Device::Cpu).unwrap();
    for kind in GgmlType::ALL {
        assert!(ggml::quantize(&dense(65504.0), kind, &Device::Cpu).is_ok(), "{kind}");
        match ggml::quantize(&dense(65505.0), kind, &Device::Cpu) {
            Ok(_) => assert!(matches!(kind, GgmlType::F32 | GgmlType::BF16)),
            Err(complaint) => assert!(complaint.to_string().contains("65505 cannot be stored in")),
        }
    }
}

#[test]
fn rows_that_are_no_whole_blocks_are_refused() {
    for (kind, columns) in [(GgmlType::Q8_0, 48), (GgmlType::Q4K, 128)] {
        let complaint = ggml::quantize(&draw((3, columns), DType::F32), kind, &Device::Cpu).unwrap_err();
        assert!(complaint.to_string().contains("no multiple of"), "{complaint}");
        let bytes = vec![0; 3 * columns / 2];
        assert!(ggml::matrix("x", kind, bytes, (3, columns), &Device::Cpu).is_err());
    }
    let whole = |bytes: usize| ggml::matrix("x", GgmlType::Q8_0, vec![0; bytes], (3, 64), &Device::Cpu);
    assert!(whole(3 * 68).is_ok());
    assert!(whole(3 * 68 - 1).unwrap_err().to_string().contains("not 203 bytes"));
}
