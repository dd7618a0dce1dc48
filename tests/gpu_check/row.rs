//! Verdicts of the table's rows.

use candle_core::DType;
use vtrain::commands::gpu_check::row::Row;
use vtrain::ops::attention::way::{Backend, Ran};

fn row(error: f64, attention: &[(Backend, DType, usize)]) -> Row {
    let ran = |&(way, dtype, width): &(Backend, DType, usize)| Ran { way, dtype, width };
    Row {
        what: "attention".into(),
        error,
        most: 1e-2,
        attention: attention.iter().map(ran).collect(),
    }
}

#[test]
fn an_error_within_bounds_holds_and_no_number_does_not() {
    assert!(row(1e-2, &[]).holds() && row(0.0, &[]).holds());
    assert!(!row(1.1e-2, &[]).holds() && !row(f64::NAN, &[]).holds());
}

#[test]
fn attention_without_cudnn_fails_for_bf16_heads_of_up_to_128_whatever_its_error() {
    for (way, dtype, width, holds) in [
        (Backend::Tiled, DType::BF16, 64, false),
        (Backend::Tiled, DType::BF16, 128, false),
        (Backend::Composed, DType::BF16, 64, false),
        (Backend::Tiled, DType::BF16, 256, true),
        (Backend::Tiled, DType::BF16, 12, true), // cuDNN wants whole 8 features
        (Backend::Tiled, DType::F32, 64, true),
        (Backend::Cudnn, DType::BF16, 64, true),
        (Backend::Cpu, DType::BF16, 64, true),
    ] {
        let row = row(0.0, &[(Backend::Cudnn, DType::BF16, 64), (way, dtype, width)]);
        assert_eq!(row.holds(), holds, "{way} {dtype:?} {width}");
        assert_eq!(row.line().starts_with("FAIL"), !holds);
    }
}
