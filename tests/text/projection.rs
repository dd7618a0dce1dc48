//! Frozen linear layers.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, safetensors};
use vtrain::nn::Weights;
use vtrain::text::projection::Projection;

/// Small whole numbers, which all storages hold and whose sums are exact.
fn whole_numbers(rows: usize, columns: usize) -> Tensor {
    let numbers: Vec<f32> = (0..rows * columns).map(|i| (i * 31 % 13) as f32 - 6.0).collect();
    Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap()
}

#[test]
fn a_projection_is_the_product_with_the_transposed_weight() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        // On both sides of 32, the tile in which a weight is transposed.
        for (out_features, in_features) in [(1, 1), (5, 70), (32, 64), (33, 31), (100, 45)] {
            let weight = whole_numbers(out_features, in_features);
            let folder = tempfile::tempdir().unwrap();
            let file = HashMap::from([("weight", weight.to_dtype(dtype).unwrap())]);
            safetensors::save(&file, folder.path().join("model.safetensors")).unwrap();
            let weights = Weights::open(folder.path(), dtype, &Device::Cpu).unwrap();
            let projection = Projection::new(in_features, out_features, weights).unwrap();

            let x = whole_numbers(3, in_features);
            let got = projection.forward(&x.unsqueeze(0).unwrap()).unwrap();
            let want = x.matmul(&weight.t().unwrap()).unwrap().unsqueeze(0).unwrap();
            assert_eq!(
                got.to_vec3::<f32>().unwrap(),
                want.to_vec3::<f32>().unwrap(),
                "{dtype:?} {out_features} x {in_features}"
            );
        }
    }
}
