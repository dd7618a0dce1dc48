use std::collections::HashMap;
use std::fs;

use candle_core::{DType, Device};
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use vtrain::nn::storage::bitsandbytes_4bit::FourBitCode;
use vtrain::nn::storage::detect::{Form, Headers, StoredForms};
use vtrain::rng::Rng;

use super::{assert_decodes_to, bytes, fixture};

fn headers(file: &[u8]) -> Headers {
    let mut headers = Headers::default();
    headers.add(&SafeTensors::read_metadata(file).unwrap().1);
    headers
}

/// Only the tensors of a model: what the script put beside them is left out.
fn of_fixture(name: &str) -> (Vec<u8>, Headers) {
    let file = fs::read(fixture(name)).unwrap();
    let mut headers = headers(&file);
    headers
        .tensors
        .retain(|name, _| !name.ends_with(".out") && !name.ends_with(".hash"));
    (file, headers)
}

#[test]
fn every_stored_matrix_of_a_file_is_found_and_read() {
    let method = |name: &str| Some(json!({"quant_method": name}));
    for (name, config, matrices) in [
        ("bitsandbytes_nf4.safetensors", method("bitsandbytes"), 6),
        ("bitsandbytes_fp4.safetensors", method("bitsandbytes"), 6),
        ("bitsandbytes_int8.safetensors", method("bitsandbytes"), 2),
        ("torchao.safetensors", method("torchao"), 6),
        ("float8.safetensors", None, 6),
    ] {
        let (bytes_of_file, headers) = of_fixture(name);
        let found = headers.stored_forms(config.as_ref()).unwrap();
        assert_eq!(found.matrices.len(), matrices, "{name}");
        assert_eq!(headers.stored_forms(None).unwrap(), found, "{name}");
        let file = SafeTensors::deserialize(&bytes_of_file).unwrap();
        let outs = match name {
            "torchao.safetensors" => fs::read(fixture("torchao_out.safetensors")).unwrap(),
            _ => bytes_of_file.clone(),
        };
        let outs = SafeTensors::deserialize(&outs).unwrap();
        for (path, form) in &found.matrices {
            let layer = path.strip_suffix(".weight").unwrap();
            let Ok(out) = outs.tensor(&format!("{layer}.out")) else {
                continue;
            };
            let shape = (out.shape()[0], out.shape()[1]);
            let stored = form.read(&file, path, shape, &Device::Cpu).unwrap();
            if ["e4m3", "e5m2"].contains(&layer) {
                // NaN: their own test has them
                assert_eq!(bytes(&stored.rows(0..3, DType::F32).unwrap()), out.data()[..4 * 96]);
            } else {
                assert_decodes_to(&*stored, &out);
            }
        }
        // Each tensor belongs to a matrix, marks the file, or is dense.
        let parts = found
            .matrices
            .values()
            .flat_map(|form| &form.parts)
            .chain(&found.markers);
        let mut parts: Vec<_> = parts.cloned().collect();
        parts.extend(headers.tensors.keys().filter(|name| name.ends_with(".bias")).cloned());
        parts.sort();
        assert_eq!(parts, headers.tensors.keys().cloned().collect::<Vec<_>>());
    }
}

fn made(tensors: &[(&str, Dtype, &[usize])], metadata: &[(&str, Value)]) -> Headers {
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string()));
    Headers {
        tensors: tensors
            .iter()
            .map(|(name, dtype, shape)| (name.to_string(), (*dtype, shape.to_vec())))
            .collect(),
        metadata: metadata.collect::<HashMap<_, _>>(),
    }
}

#[test]
fn a_dense_checkpoint_has_no_stored_matrix() {
    let dense = made(
        &[
            ("a.weight", Dtype::BF16, &[3, 4]),
            ("b.weight", Dtype::F32, &[3]),
            ("conv.weight", Dtype::F8_E4M3, &[3, 4, 1, 2, 2]), // a number format like any other
            ("ids", Dtype::I64, &[3]),
        ],
        &[("format", json!("pt"))],
    );
    assert_eq!(dense.stored_forms(None).unwrap(), StoredForms::default());
    assert_eq!(dense.stored_forms(Some(&Value::Null)).unwrap(), StoredForms::default());
}

#[test]
fn a_form_is_told_by_the_tensors_beside_the_weight() {
    let four = |kind: &str| {
        let state = format!("x.weight.quant_state.bitsandbytes__{kind}");
        made(&[("x.weight", Dtype::U8, &[8, 1]), (&state, Dtype::U8, &[9])], &[])
    };
    let form = |headers: Headers| headers.stored_forms(None).unwrap().matrices["x.weight"].form.clone();
    assert_eq!(form(four("nf4")), Form::FourBit(FourBitCode::Nf4));
    assert_eq!(form(four("fp4")), Form::FourBit(FourBitCode::Fp4));
    let weight = |dtype, beside: &str| made(&[("x.weight", dtype, &[4, 4]), (beside, Dtype::F32, &[4])], &[]);
    assert_eq!(form(weight(Dtype::I8, "x.SCB")), Form::Int8Rows);
    let scaled = |scale: Option<&str>| Form::Float8 {
        scale: scale.map(String::from),
        comfy_quant: None,
    };
    assert_eq!(
        form(weight(Dtype::F8_E4M3, "x.scale_weight")),
        scaled(Some("x.scale_weight"))
    );
    assert_eq!(
        form(weight(Dtype::F8_E5M2, "x.weight_scale")),
        scaled(Some("x.weight_scale"))
    );
    assert_eq!(form(weight(Dtype::F8_E4M3, "y.weight_scale")), scaled(None));
}

#[test]
fn forms_that_are_not_read_are_named_all_at_once() {
    let headers = made(
        &[
            ("a.qweight", Dtype::I32, &[4, 4]),
            ("b.weight._data", Dtype::I8, &[4, 4]),
            ("c.weight", Dtype::I8, &[4, 4]),
            ("d.weight", Dtype::U8, &[4, 4]),
            ("e.weight", Dtype::F8_E4M3, &[4, 4, 1]),
            ("e.scale_weight", Dtype::F32, &[1]),
            ("f.weight", Dtype::I8, &[4, 4]),
            ("f.comfy_quant", Dtype::U8, &[9]),
            ("g._weight_qdata", Dtype::I8, &[4, 4]),
        ],
        &[("h.weight", json!({"_type": "Int4Tensor"}))],
    );
    let complaint = format!("{:#}", headers.stored_forms(None).unwrap_err());
    for part in [
        "7 tensors",
        "a.qweight is of GPTQ",
        "b.weight._data is of quanto",
        "c.weight is I8, without",
        "d.weight is U8, without",
        "e.weight [4, 4, 1] is in scaled fp8",
        "f.weight is I8 of ComfyUI",
        "h.weight is torchao's Int4Tensor",
        "nf4",
    ] {
        assert!(complaint.contains(part), "{part}: {complaint}");
    }
    let unlisted = made(&[("g._weight_qdata", Dtype::I8, &[4, 4])], &[]);
    let complaint = unlisted.stored_forms(None).unwrap_err().to_string();
    assert!(complaint.contains("g._weight_qdata is torchao's, but"), "{complaint}");
    let smoothed = made(
        &[
            ("g._weight_qdata", Dtype::I8, &[4, 4]),
            ("g._weight_act_pre_scale", Dtype::F32, &[4]),
        ],
        &[("g.weight", json!({"_type": "Int8Tensor"}))],
    );
    let complaint = smoothed.stored_forms(None).unwrap_err().to_string();
    assert!(
        complaint.contains("g.weight is torchao's with scales for its inputs"),
        "{complaint}"
    );
    let many = |count: usize| {
        let names: Vec<String> = (0..count).map(|i| format!("{i}.qweight")).collect();
        let tensors: Vec<_> = names
            .iter()
            .map(|name| (name.as_str(), Dtype::I32, &[4, 4][..]))
            .collect();
        made(&tensors, &[]).stored_forms(None).unwrap_err().to_string()
    };
    assert!(!many(8).contains("...") && many(9).contains("..."));
}

#[test]
fn a_config_and_its_tensors_must_agree() {
    let dense = made(&[("a.weight", Dtype::BF16, &[3, 4])], &[]);
    for (config, message) in [
        (
            json!({"quant_method": "gptq"}),
            "quant_method is \"gptq\", which is not read",
        ),
        (json!({}), "quant_method is null"),
        (
            json!({"quant_method": "bitsandbytes"}),
            "says bitsandbytes, but no tensor",
        ),
        (json!({"quant_method": "torchao"}), "says torchao, but"),
    ] {
        let complaint = dense.stored_forms(Some(&config)).unwrap_err().to_string();
        assert!(complaint.contains(message), "{complaint}");
    }
}

/// Ten thousand files with a few bytes changed, in their headers and behind them: refused or read, without a panic.
#[test]
fn no_stored_matrix_does_harm() {
    let mut rng = Rng::new(4);
    let mut one = |below: usize| rng.randint(0, below as i64, 1)[0] as usize;
    let (mut refused, mut read) = (0, 0);
    for name in [
        "bitsandbytes_nf4.safetensors",
        "bitsandbytes_fp4.safetensors",
        "bitsandbytes_int8.safetensors",
        "torchao.safetensors",
        "float8.safetensors",
    ] {
        let (file, whole) = of_fixture(name);
        let forms = whole.stored_forms(None).unwrap();
        for _ in 0..2000 {
            let mut file = file.clone();
            for _ in 0..=one(3) {
                let at = one(file.len());
                file[at] = [0, 0x7f, 0xff, b'0', b'9', one(256) as u8][one(6)];
            }
            let Ok(parts) = SafeTensors::deserialize(&file) else {
                refused += 1;
                continue;
            };
            let shape = (1 + one(8), [5, 27, 33, 36, 64][one(5)]);
            let _ = headers(&file).stored_forms(None);
            for (path, form) in &forms.matrices {
                match form.read(&parts, path, shape, &Device::Cpu) {
                    Ok(stored) => read += usize::from(stored.rows(0..shape.0, DType::BF16).is_ok()),
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(refused > 1000 && read > 100, "{refused} refused, {read} read");
}

#[test]
fn formats_of_comfyui_that_turn_rows_are_refused() {
    let (file, headers) = of_fixture("float8.safetensors");
    let form = headers.stored_forms(None).unwrap().matrices["comfy.weight"].clone();
    let read = |json: &str| {
        let file = super::changed(&file, |name, shape, data| {
            if name == "comfy.comfy_quant" {
                (*shape, *data) = (vec![json.len()], json.as_bytes().to_vec());
            }
            true
        });
        let file = SafeTensors::deserialize(&file).unwrap();
        form.read(&file, "comfy.weight", (4, 24), &Device::Cpu)
            .map_err(|error| error.to_string())
    };
    assert!(read(r#"{"format": "float8_e4m3fn"}"#).is_ok());
    let complaint = read(r#"{"format": "int8_convrot"}"#).unwrap_err();
    assert!(
        complaint.contains("comfy.comfy_quant says 'int8_convrot'"),
        "{complaint}"
    );
}
