use std::fs;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use vtrain::nn::storage::float8;

use super::{assert_decodes_to, bytes, changed, draw, fixture};
use vtrain::ops::stored::StoredMatrix;

#[test]
fn every_code_of_fp8_is_torchs() {
    let file = fs::read(fixture("float8.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    for name in ["e4m3", "e5m2"] {
        let stored = float8::read(&file, &format!("{name}.weight"), None, (8, 32), &Device::Cpu).unwrap();
        let expected = file.tensor(&format!("{name}.out")).unwrap();
        let found = bytes(&stored.rows(0..8, DType::F32).unwrap());
        for (code, (found, expected)) in found.chunks(4).zip(expected.data().chunks(4)).enumerate() {
            let [found, expected] = [found, expected].map(|x| f32::from_le_bytes(x.try_into().unwrap()));
            let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan());
            assert!(same, "{name} {code:#x}: {found} for {expected}");
        }
    }
}

#[test]
fn scales_are_for_all_for_a_row_or_for_a_part_of_it() {
    let file = fs::read(fixture("float8.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    for (name, scale) in [
        ("whole", "scale_weight"),
        ("rows", "scale_weight"),
        ("blocks", "scale_weight"),
        ("comfy", "weight_scale"),
    ] {
        let (weight, scale) = (format!("{name}.weight"), format!("{name}.{scale}"));
        let stored = float8::read(&file, &weight, Some(&scale), (4, 24), &Device::Cpu).unwrap();
        assert_decodes_to(&stored, &file.tensor(&format!("{name}.out")).unwrap());
    }
}

#[test]
fn scales_that_do_not_divide_a_matrix_are_refused() {
    let file = fs::read(fixture("float8.safetensors")).unwrap();
    for sides in [vec![3, 1], vec![4, 5, 1], vec![0, 1], vec![1, 1, 1, 4]] {
        let file = changed(&file, |name, shape, data| {
            if name == "rows.scale_weight" {
                *shape = sides.clone();
                data.resize(4 * sides.iter().product::<usize>(), 0);
            }
            true
        });
        let file = SafeTensors::deserialize(&file).unwrap();
        let read = float8::read(&file, "rows.weight", Some("rows.scale_weight"), (4, 24), &Device::Cpu);
        let complaint = read.unwrap_err().to_string();
        assert!(
            complaint.contains("rows.scale_weight") && complaint.contains("equal blocks"),
            "{complaint}"
        );
    }
}

#[test]
fn a_matrix_of_another_shape_or_type_is_refused() {
    let file = fs::read(fixture("float8.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let complaint = |path: &str| {
        let read = float8::read(&file, path, None, (24, 4), &Device::Cpu);
        read.unwrap_err().to_string()
    };
    assert!(complaint("rows.weight").contains("should be F8_E4M3 (24, 4), but is F8_E4M3 [4, 24]"));
    assert!(complaint("rows.out").contains("should be in fp8, but is F32"));
}

#[test]
fn a_cast_to_fp8_is_torchs() {
    let file = fs::read(fixture("float8.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let weight = draw((4, 24), DType::F32);
    let dense = Tensor::cat(&[&weight, &(&weight * 1000.0).unwrap()], 0).unwrap();
    let stored = float8::quantize(&dense, &Device::Cpu).unwrap();
    assert_decodes_to(&stored, &file.tensor("cast.out").unwrap());
}
