use std::fs;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use vtrain::nn::storage::bitsandbytes_4bit::{self, Absmax, FourBitCode};
use vtrain::nn::storage::bitsandbytes_int8;
use vtrain::ops::stored::StoredMatrix;

use super::{assert_decodes_to, bytes, changed, draw, fixture, hash};

/// Matrices of the script: name, shape, type, double quantisation.
const FOUR_BIT: [(&str, (usize, usize), DType, bool); 6] = [
    ("whole", (4, 64), DType::BF16, false),
    ("spanning", (7, 36), DType::BF16, false),
    ("odd", (5, 27), DType::F32, false),
    ("short", (1, 5), DType::F16, false),
    ("nested", (3, 70), DType::F32, true),
    ("many_nested", (61, 136), DType::BF16, true),
];
const CODES: [FourBitCode; 2] = [FourBitCode::Nf4, FourBitCode::Fp4];

fn four_bit(code: FourBitCode) -> Vec<u8> {
    fs::read(fixture(&format!("bitsandbytes_{}.safetensors", code.name()))).unwrap()
}

#[test]
fn four_bits_decode_as_in_bitsandbytes() {
    for code in CODES {
        let file = four_bit(code);
        let file = SafeTensors::deserialize(&file).unwrap();
        for (name, shape, dtype, nested) in FOUR_BIT {
            let path = format!("{name}.weight");
            let stored = bitsandbytes_4bit::read(&file, &path, code, shape, &Device::Cpu).unwrap();
            assert_eq!(format!("{stored:?}").contains("double"), nested);
            match file.tensor(&format!("{name}.out")) {
                Ok(out) => assert_decodes_to(&stored, &out),
                Err(_) => {
                    let expected = file.tensor(&format!("{name}.hash")).unwrap();
                    assert_eq!(hash(&stored, dtype), expected.data(), "{name}");
                }
            }
        }
    }
}

#[test]
fn four_bits_with_double_quantisation_take_a_little_more_than_half_a_byte() {
    let dense = draw((256, 1024), DType::BF16);
    let stored = |nested| bitsandbytes_4bit::quantize(&dense, FourBitCode::Nf4, nested, &Device::Cpu).unwrap();
    let numbers = 256.0 * 1024.0;
    let bits = |nested| stored(nested).bytes() as f64 * 8.0 / numbers;
    assert!((4.5..4.51).contains(&bits(false)), "{}", bits(false));
    assert!((4.12..4.17).contains(&bits(true)), "{}", bits(true)); // 1 KiB of it is a table
}

#[test]
fn four_bits_are_coded_as_in_bitsandbytes() {
    for code in CODES {
        let file = four_bit(code);
        let file = SafeTensors::deserialize(&file).unwrap();
        for (name, shape, dtype, nested) in FOUR_BIT {
            if name == "many_nested" {
                continue; // in smaller blocks than are made here
            }
            let part = |part: &str| file.tensor(&format!("{name}.weight{part}")).unwrap();
            let stored = bitsandbytes_4bit::quantize(&draw(shape, dtype), code, nested, &Device::Cpu).unwrap();
            let format = stored.format();
            assert_eq!(format.codes, part("").data(), "{name} {code:?}");
            let map: Vec<u8> = format.map.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(map, part(".quant_map").data());
            let le = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
            match &format.absmax {
                Absmax::Plain(absmax) => assert_eq!(le(absmax), part(".absmax").data(), "{name} {code:?}"),
                Absmax::Nested {
                    codes,
                    map,
                    absmax,
                    block,
                    ..
                } => {
                    assert_eq!(codes, part(".absmax").data());
                    assert_eq!(le(map), part(".nested_quant_map").data());
                    assert_eq!(le(absmax), part(".nested_absmax").data());
                    assert_eq!(*block, 256);
                }
            }
        }
    }
}

#[test]
fn magnitudes_of_more_blocks_than_a_nested_block_are_coded_by_the_midpoints() {
    for code in CODES {
        let file = four_bit(code);
        let file = SafeTensors::deserialize(&file).unwrap();
        let part = |part: &str| file.tensor(&format!("large.{part}")).unwrap().data().to_vec();
        let stored = bitsandbytes_4bit::quantize(&draw((130, 130), DType::BF16), code, true, &Device::Cpu).unwrap();
        assert_eq!(Sha256::digest(&stored.format().codes).to_vec(), part("codes.hash"));
        let Absmax::Nested {
            codes, absmax, offset, ..
        } = &stored.format().absmax
        else {
            panic!("not nested");
        };
        assert_eq!(*codes, part("absmax.out"));
        // The kernel for the CPU is off by one close to midpoints.
        let cpu = part("absmax_cpu.out");
        let off = codes.iter().zip(&cpu).map(|(a, b)| a.abs_diff(*b));
        assert!(off.clone().all(|off| off <= 1) && off.filter(|off| *off == 1).count() <= 6);
        // The mean is a sum, whose order is the processor's there: the last bit may differ, and so may what is less by it.
        let close = |found: &[f32], expected: &[u8]| {
            let expected = expected.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x));
            assert_eq!(found.len(), expected.len());
            found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() <= 2.0 * f32::EPSILON * b.abs())
        };
        assert!(close(absmax, &part("nested.out")) && close(&[*offset], &part("offset.out")));
    }
}

/// N(0, 1) at the rounding errors that are known for these codes.
#[test]
fn four_bits_err_as_much_as_they_should() {
    let numbers = vtrain::rng::Rng::new(1).randn(64 * 512);
    let dense = Tensor::from_vec(numbers, (64, 512), &Device::Cpu).unwrap();
    for (code, error) in CODES.into_iter().zip([0.0926, 0.1226]) {
        for nested in [false, true] {
            let stored = bitsandbytes_4bit::quantize(&dense, code, nested, &Device::Cpu).unwrap();
            let decoded = stored.rows(0..64, DType::F32).unwrap();
            let norm = |x: &Tensor| x.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            let found = norm(&(&dense - decoded).unwrap()) / norm(&dense);
            assert!((found / error - 1.0).abs() < 0.05, "{code:?}: {found}");
        }
    }
}

#[test]
fn parts_of_four_bits_that_do_not_fit_are_told() {
    let file = four_bit(FourBitCode::Nf4);
    let complaint = |file: &[u8], name: &str, shape| {
        let file = SafeTensors::deserialize(file).unwrap();
        let path = format!("{name}.weight");
        bitsandbytes_4bit::read(&file, &path, FourBitCode::Nf4, shape, &Device::Cpu)
            .unwrap_err()
            .to_string()
    };
    assert!(complaint(&file, "whole", (64, 4)).contains("should be (64, 4) by config.json, but is [4, 64]"));
    let state = "whole.weight.quant_state.bitsandbytes__nf4";
    let with_state = |json: &str| {
        changed(&file, |name, shape, data| {
            if name == state {
                (*shape, *data) = (vec![json.len()], json.as_bytes().to_vec());
            }
            true
        })
    };
    for (json, message) in [
        ("{", "not the JSON"),
        (r#"{"quant_type":"nf4","blocksize":0,"shape":[4,64]}"#, "blocksize is 0"),
        (
            r#"{"quant_type":"nf4","blocksize":65,"shape":[4,64]}"#,
            "blocksize is 65",
        ),
        (
            r#"{"quant_type":"nf4","blocksize":8192,"shape":[4,64]}"#,
            "blocksize is 8192",
        ),
        (r#"{"quant_type":"fp4","blocksize":64,"shape":[4,64]}"#, "'fp4'"),
        (
            r#"{"quant_type":"nf4","blocksize":32,"shape":[4,64]}"#,
            "absmax should be 8 numbers",
        ),
        (
            r#"{"quant_type":"nf4","blocksize":64,"shape":[4,64],"nested_blocksize":256}"#,
            "nested_offset is missing",
        ),
    ] {
        let found = complaint(&with_state(json), "whole", (4, 64));
        assert!(
            found.contains(message) && found.contains("whole.weight"),
            "{json}: {found}"
        );
    }
    // The largest block is one, and one more is none.
    let largest = r#"{"quant_type":"nf4","blocksize":4096,"shape":[4,64]}"#;
    assert!(complaint(&with_state(largest), "whole", (4, 64)).contains("absmax should be 1 numbers"));
    for part in ["quant_map", "absmax", "nested_absmax", "nested_quant_map"] {
        let without = changed(&file, |name, _, _| !name.ends_with(&format!("nested.weight.{part}")));
        assert!(complaint(&without, "nested", (3, 70)).contains(part), "{part}");
    }
    let short = changed(&file, |name, shape, data| {
        if name == "whole.weight" {
            data.pop();
            *shape = vec![data.len()];
        }
        true
    });
    assert!(complaint(&short, "whole", (4, 64)).contains("should be 128 bytes"));
}

#[test]
fn eight_bits_decode_and_are_coded_as_in_bitsandbytes() {
    let file = fs::read(fixture("bitsandbytes_int8.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    for (name, shape, dtype) in [("plain", (5, 33), DType::BF16), ("wide", (3, 70), DType::F32)] {
        let stored = bitsandbytes_int8::read(&file, name, shape, &Device::Cpu).unwrap();
        assert_decodes_to(&stored, &file.tensor(&format!("{name}.out")).unwrap());
        let made = bitsandbytes_int8::quantize(&draw(shape, dtype), &Device::Cpu).unwrap();
        assert_eq!(
            made.format().codes,
            file.tensor(&format!("{name}.weight")).unwrap().data()
        );
        let absmax: Vec<u8> = made.format().absmax().iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(absmax, file.tensor(&format!("{name}.SCB")).unwrap().data());
        let decoded = |stored: &dyn StoredMatrix| bytes(&stored.rows(0..shape.0, DType::F32).unwrap());
        assert_eq!(decoded(&made), decoded(&stored));
    }
    let large = bitsandbytes_int8::quantize(&draw((130, 130), DType::BF16), &Device::Cpu).unwrap();
    let codes = Sha256::digest(&large.format().codes).to_vec();
    assert_eq!(codes, file.tensor("large.hash").unwrap().data());
}

#[test]
fn eight_bits_in_another_layout_are_refused() {
    let file = fs::read(fixture("bitsandbytes_int8.safetensors")).unwrap();
    let read = |file: &[u8]| {
        let file = SafeTensors::deserialize(file).unwrap();
        bitsandbytes_int8::read(&file, "plain", (5, 33), &Device::Cpu).map_err(|error| error.to_string())
    };
    assert!(read(&changed(&file, |name, _, _| name != "plain.weight_format")).is_ok());
    let turned = changed(&file, |name, _, data| {
        if name == "plain.weight_format" {
            data[0] = 2;
        }
        true
    });
    assert!(read(&turned).unwrap_err().contains("plain.weight_format is [2]"));
    assert!(read(&changed(&file, |name, _, _| name != "plain.SCB")).is_err());
    let file = SafeTensors::deserialize(&file).unwrap();
    let turned = bitsandbytes_int8::read(&file, "plain", (33, 5), &Device::Cpu)
        .unwrap_err()
        .to_string();
    assert!(
        turned.contains("plain.weight should be I8 (33, 5), but is I8 [5, 33]"),
        "{turned}"
    );
}

#[test]
fn what_is_no_number_cannot_be_stored() {
    let complaint = |x: f32| {
        let dense = Tensor::new(&[[1f32, 2.0], [3.0, x]], &Device::Cpu).unwrap();
        let four = bitsandbytes_4bit::quantize(&dense, FourBitCode::Nf4, true, &Device::Cpu);
        let eight = bitsandbytes_int8::quantize(&dense, &Device::Cpu);
        [four.err(), eight.err()].map(|error| error.map_or_else(String::new, |error| error.to_string()))
    };
    assert!(
        complaint(f32::NAN)
            .iter()
            .all(|told| told.contains("NaN in row 1, column 1"))
    );
    assert!(
        complaint(f32::INFINITY)
            .iter()
            .all(|told| told.contains("inf in row 1, column 1"))
    );
    let [four, eight] = complaint(1e5);
    assert!(four.is_empty() && eight.contains("inf in row 1, column 1"), "{eight}"); // too large for f16
}
