//! NaN and infinities are found at any index, in every format, and nothing else is.

use candle_core::{DType, Device, Tensor};
use vtrain::finite::{NotFinite, check, first, first_in};

const FLOATS: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

#[test]
fn the_first_number_that_is_none_is_found_in_every_format() {
    for dtype in FLOATS {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for place in [0, 1, 4095, 4096, 9999] {
                let mut numbers: Vec<f64> = (0..10_000).map(|i| f64::from(i) / 7.0 - 700.0).collect();
                numbers[place] = bad;
                numbers[9999] = bad;
                let tensor = Tensor::from_vec(numbers, 10_000, &Device::Cpu).unwrap();
                let tensor = tensor.to_dtype(dtype).unwrap();
                let found = first(&tensor).unwrap().unwrap();
                assert_eq!(found.place, place, "{dtype:?} {bad}");
                assert!(
                    found.value == bad || (found.value.is_nan() && bad.is_nan()),
                    "{dtype:?}: {found}"
                );
            }
        }
    }
}

#[test]
fn what_is_finite_is_left_alone() {
    let edges = [0.0, -0.0, f64::from(f32::MAX), f64::from(f32::MIN_POSITIVE) / 8.0];
    for dtype in [DType::F64, DType::F32] {
        let tensor = Tensor::new(&edges, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        assert_eq!(first(&tensor).unwrap(), None);
    }
    let largest = Tensor::new(&[65504.0, -65504.0], &Device::Cpu).unwrap();
    assert_eq!(first(&largest.to_dtype(DType::F16).unwrap()).unwrap(), None);
    // All bits set are whole numbers like others, and a byte over is none.
    assert_eq!(first_in(&[0xff; 64], DType::I64), None);
    assert_eq!(first_in(&[0, 0, 0xff], DType::BF16), None);
    assert_eq!(first_in(&[], DType::F32), None);
}

#[test]
fn only_what_a_tensor_shows_of_its_memory_counts() {
    let tensor = Tensor::new(&[[1f32, f32::NAN], [2.0, 3.0]], &Device::Cpu).unwrap();
    assert_eq!(first(&tensor.narrow(1, 0, 1).unwrap()).unwrap(), None);
    let turned = first(&tensor.t().unwrap()).unwrap();
    assert!(matches!(turned, Some(NotFinite { place: 2, .. })), "{turned:?}");
    let said = format!("{:#}", check("its mean", &tensor).unwrap_err());
    assert_eq!(said, "its mean holds NaN at index 1");
}
