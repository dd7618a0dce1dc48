use candle_core::{DType, Device};
use vtrain::nn::storage::ggml::GgmlType;
use vtrain::nn::storage::quantize::Quantization;

use super::draw;

#[test]
fn every_form_has_its_name() {
    let names: Vec<&str> = Quantization::all().map(Quantization::name).collect();
    let expected = "fp8 fp8-scaled int8 nf4 fp4 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k";
    assert_eq!(names.join(" "), expected);
    for form in Quantization::all() {
        assert_eq!(Quantization::from_name(form.name()), Some(form));
    }
    assert_eq!(Quantization::from_name("q4"), None);
}

#[test]
fn a_matrix_gets_the_form_of_a_name_and_its_size() {
    let dense = draw((64, 256), DType::BF16);
    for (name, form, bits) in [
        ("fp8", "fp8 E4M3", 8.0),
        ("fp8-scaled", "scaled fp8 E4M3", 8.0),
        ("int8", "torchao int8", 8.0),
        ("nf4", "bitsandbytes nf4 with double quantisation", 4.1),
        ("fp4", "bitsandbytes fp4 with double quantisation", 4.1),
        ("q8_0", "GGUF Q8_0", 8.5),
        ("q4_k", "GGUF Q4_K", 4.5),
        ("q2_k", "GGUF Q2_K", 2.625),
    ] {
        let stored = Quantization::from_name(name)
            .unwrap()
            .store(&dense, &Device::Cpu)
            .unwrap();
        assert_eq!(format!("{stored:?}"), format!("{form} (64, 256)"));
        let found = stored.bytes() as f64 * 8.0 / (64.0 * 256.0);
        assert!((bits..bits + 0.8).contains(&found), "{name}: {found} bits"); // tables of 1 KiB are much of so little
        assert_eq!(stored.rows(3..5, DType::BF16).unwrap().dims(), [2, 256]);
    }
}

/// As llama.cpp has it, whose IQ4_NL is not made here.
#[test]
fn rows_that_are_no_whole_blocks_get_a_type_of_more_bits() {
    for (kind, of_32, of_8) in [
        (GgmlType::Q2K, GgmlType::Q4_0, GgmlType::F16),
        (GgmlType::Q3K, GgmlType::Q4_0, GgmlType::F16),
        (GgmlType::Q4K, GgmlType::Q5_0, GgmlType::F16),
        (GgmlType::Q5K, GgmlType::Q5_1, GgmlType::F16),
        (GgmlType::Q6K, GgmlType::Q8_0, GgmlType::F16),
        (GgmlType::Q8_0, GgmlType::Q8_0, GgmlType::F16),
    ] {
        assert_eq!(kind.fallback(512), kind);
        assert_eq!((kind.fallback(96), kind.fallback(40)), (of_32, of_8), "{kind}");
        let stored = Quantization::Ggml(kind)
            .store(&draw((3, 40), DType::F32), &Device::Cpu)
            .unwrap();
        assert_eq!(format!("{stored:?}"), "GGUF F16 (3, 40)");
    }
}
