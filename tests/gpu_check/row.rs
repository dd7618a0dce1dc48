//! Which lines of the table hold.

use candle_core::DType;
use vtrain::commands::gpu_check::row::Row;
use vtrain::ops::attention::way::{Ran, Way};

fn row(error: f64, attention: &[(Way, DType, usize)]) -> Row {
    let ran = |&(way, dtype, width): &(Way, DType, usize)| Ran { way, dtype, width };
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
        (Way::Tiled, DType::BF16, 64, false),
        (Way::Tiled, DType::BF16, 128, false),
        (Way::Composed, DType::BF16, 64, false),
        (Way::Tiled, DType::BF16, 256, true),
        (Way::Tiled, DType::BF16, 12, true), // cuDNN wants whole 8 features
        (Way::Tiled, DType::F32, 64, true),
        (Way::Cudnn, DType::BF16, 64, true),
        (Way::Cpu, DType::BF16, 64, true),
    ] {
        let row = row(0.0, &[(Way::Cudnn, DType::BF16, 64), (way, dtype, width)]);
        assert_eq!(row.holds(), holds, "{way} {dtype:?} {width}");
        assert_eq!(row.line().starts_with("FAIL"), !holds);
    }
}
