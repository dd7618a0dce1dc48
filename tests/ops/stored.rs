use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use vtrain::ops::linear::{Frozen, LowRank};
use vtrain::ops::stored::{StoredMatrix, Weight};

use super::elementwise::randn;
use super::{assert_close, assert_same_on_all_threads};

/// A matrix that writes down which rows were decoded.
#[derive(Debug)]
struct Recorded {
    dense: Tensor,
    ranges: Mutex<Vec<Range<usize>>>,
    breaks: bool,
}

impl StoredMatrix for Recorded {
    fn shape(&self) -> (usize, usize) {
        self.dense.dims2().unwrap()
    }

    fn bytes(&self) -> usize {
        0
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn rows(&self, range: Range<usize>, dtype: DType) -> Result<Tensor> {
        if self.breaks {
            bail!("the matrix is broken");
        }
        self.ranges.lock().unwrap().push(range.clone());
        self.dense.narrow(0, range.start, range.len())?.to_dtype(dtype)
    }
}

fn recorded(dense: &Tensor, breaks: bool) -> Arc<Recorded> {
    Arc::new(Recorded {
        dense: dense.clone(),
        ranges: Mutex::default(),
        breaks,
    })
}

/// The output, with an adapter if there is one, and the gradient of x.
fn there_and_back(weight: Weight, adapter: Option<LowRank>) -> [Tensor; 2] {
    let (out_features, features) = weight.shape().unwrap();
    let x = Var::from_tensor(&randn(2, &[3, features])).unwrap();
    let layer = Frozen::new(weight, Some(randn(4, &[out_features])));
    let y = match adapter {
        Some(adapter) => layer.forward_with(&x, adapter).unwrap(),
        None => layer.forward(&x).unwrap(),
    };
    let weights = randn(3, &[3, out_features]);
    let grads = (&y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let dx = grads.get(&x).unwrap().clone();
    [y, dx]
}

/// A strip is 2^20 numbers: 1024 rows of 1024, and a row that is longer.
#[test]
fn a_stored_matrix_is_decoded_a_strip_at_a_time_and_again_on_the_way_back() {
    for (rows, features, borders) in [
        (1023, 1024, &[0, 1023][..]),
        (1024, 1024, &[0, 1024]),
        (1025, 1024, &[0, 1024, 1025]),
        (2049, 1024, &[0, 1024, 2048, 2049]),
        (2, (1 << 20) + 1, &[0, 1, 2]),
    ] {
        let strips: Vec<_> = borders.windows(2).map(|pair| pair[0]..pair[1]).collect();
        let dense = randn(1, &[rows, features]);
        let (a, b) = (randn(5, &[2, features]), randn(6, &[rows, 2]));
        for adapted in [false, true] {
            let adapter = |a, b| adapted.then_some(LowRank { a, b, scale: 0.1 });
            let stored = recorded(&dense, false);
            let found = there_and_back(Weight::Stored(stored.clone()), adapter(&a, &b));
            let expected = there_and_back(dense.clone().into(), adapter(&a, &b));
            for (found, expected) in found.iter().zip(&expected) {
                assert_close("stored", found, expected, 1e-5);
            }
            assert_eq!(
                *stored.ranges.lock().unwrap(),
                [strips.clone(), strips.clone()].concat()
            );
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit_of_a_product_of_a_stored_matrix() {
    let dense = randn(1, &[1500, 800]);
    assert_same_on_all_threads(|| there_and_back(Weight::Stored(recorded(&dense, false)), None).to_vec());
}

#[test]
fn a_weight_is_dense_where_all_of_it_is_asked_for() {
    let dense = randn(1, &[5, 4]);
    for weight in [dense.clone().into(), Weight::Stored(recorded(&dense, false))] {
        assert_eq!(weight.shape().unwrap(), (5, 4));
        let narrow = weight.dense(DType::BF16).unwrap();
        assert_eq!(narrow.dtype(), DType::BF16);
        assert_close("dense", &narrow, &dense.to_dtype(DType::BF16).unwrap(), 0.0);
    }
}

#[test]
fn a_matrix_that_cannot_be_decoded_fails_its_layer() {
    let layer = Frozen::new(Weight::Stored(recorded(&randn(1, &[3, 4]), true)), None);
    let complaint = layer.forward(&randn(2, &[2, 4])).unwrap_err().to_string();
    assert!(complaint.contains("the matrix is broken"), "{complaint}");
    let complaint = layer.forward(&randn(2, &[2, 5])).unwrap_err().to_string();
    assert!(complaint.contains("4 features was given [2, 5]"), "{complaint}");
}

#[test]
fn a_stored_matrix_without_rows_or_columns_gives_nothing() {
    for (rows, features) in [(0, 4), (3, 0)] {
        let stored = recorded(
            &Tensor::zeros((rows, features), DType::F32, &Device::Cpu).unwrap(),
            false,
        );
        let [y, dx] = there_and_back(Weight::Stored(stored), None);
        assert_eq!((y.dims(), dx.dims()), (&[3, rows][..], &[3, features][..]));
        let bias = randn(4, &[rows]).broadcast_as((3, rows)).unwrap();
        assert_close("y", &y, &bias, 0.0);
    }
}
