use std::fs;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use vtrain::nn::storage::torchao;
use vtrain::ops::stored::StoredMatrix;

use super::{assert_decodes_to, draw, fixture};

#[test]
fn int8_and_float8_decode_as_in_torchao() {
    let [file, outs] = ["torchao.safetensors", "torchao_out.safetensors"].map(|name| fs::read(fixture(name)).unwrap());
    let [file, outs] = [&file, &outs].map(|file| SafeTensors::deserialize(file).unwrap());
    for (name, shape) in [
        ("int8", (5, 33)),
        ("int8_wide", (3, 70)),
        ("int8_group", (3, 24)),
        ("int8_uneven", (4, 9)),
        ("float8", (5, 33)),
        ("float8_wide", (3, 70)),
    ] {
        let path = format!("{name}.weight");
        let stored: Box<dyn StoredMatrix> = match name.starts_with("int8") {
            true => Box::new(torchao::read_int8(&file, &path, shape, &Device::Cpu).unwrap()),
            false => Box::new(torchao::read_float8(&file, &path, shape, &Device::Cpu).unwrap()),
        };
        assert_decodes_to(&*stored, &outs.tensor(&format!("{name}.out")).unwrap());
    }
}

#[test]
fn int8_and_float8_are_coded_as_in_torchao() {
    let file = fs::read(fixture("torchao.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    for (size, shape, dtype) in [("", (5, 33), DType::BF16), ("_wide", (3, 70), DType::F32)] {
        let part = |kind: &str, part: &str| file.tensor(&format!("{kind}{size}._weight_{part}")).unwrap();
        let le = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let dense = draw(shape, dtype);
        let int8 = torchao::quantize_int8(&dense, &Device::Cpu).unwrap();
        assert_eq!(int8.format().codes, part("int8", "qdata").data());
        assert_eq!(le(int8.format().scales()), part("int8", "scale").data());
        // There, a row of zeros is one of NaN: the script has the first row in its place.
        let rows = [0, 0, 2, 3, 4]
            .map(|row: u32| row)
            .into_iter()
            .take(shape.0)
            .collect::<Vec<_>>();
        let rows = Tensor::new(rows, &Device::Cpu).unwrap();
        let dense = dense.index_select(&rows, 0).unwrap();
        let float8 = torchao::quantize_float8(&dense, &Device::Cpu).unwrap();
        assert_eq!(float8.format().codes, part("float8", "qdata").data());
        assert_eq!(le(float8.format().scales()), part("float8", "scale").data());
    }
}

#[test]
fn thousands_of_codes_are_torchaos() {
    let outs = fs::read(fixture("torchao_out.safetensors")).unwrap();
    let outs = SafeTensors::deserialize(&outs).unwrap();
    for (name, dtype) in [("bfloat16", DType::BF16), ("float32", DType::F32)] {
        let dense = draw((130, 130), dtype);
        let int8 = torchao::quantize_int8(&dense, &Device::Cpu).unwrap();
        let dense = dense.narrow(0, 2, 128).unwrap(); // behind the row of zeros
        let float8 = torchao::quantize_float8(&dense, &Device::Cpu).unwrap();
        for (kind, codes) in [("int8", &int8.format().codes), ("float8", &float8.format().codes)] {
            let expected = outs.tensor(&format!("{kind}_torch.{name}.hash")).unwrap();
            assert_eq!(Sha256::digest(codes).to_vec(), expected.data(), "{kind} {name}");
        }
    }
}

#[test]
fn a_row_of_zeros_stays_one_in_float8() {
    let stored = torchao::quantize_float8(&draw((3, 9), DType::F32), &Device::Cpu).unwrap();
    let row: Vec<Vec<f32>> = stored.rows(1..2, DType::F32).unwrap().to_vec2().unwrap();
    assert_eq!(row, [[0.0; 9]]);
}
