use vtrain::ops::microkernel::{Extent, Lhs, Output, Rhs, multiply};
use vtrain::ops::simd::Isa;
use vtrain::rng::Rng;

/// Every kind of vector that this machine has, all heights and widths of tiles, both ways to read the left matrix.
#[test]
fn products_are_those_of_a_plain_loop() {
    for isa in Isa::available() {
        for (rows, cols, depth) in [
            (1, 16, 1),
            (2, 32, 7),
            (3, 48, 5),
            (23, 64, 33),
            (17, 80, 9),
            (37, 176, 12),
            (4, 16, 0),
        ] {
            for (transposed, add) in [(false, false), (true, true)] {
                let extent = Extent { rows, cols, depth };
                product_is_that_of_a_plain_loop(isa, extent, transposed, add);
            }
        }
    }
}

fn product_is_that_of_a_plain_loop(isa: Isa, extent: Extent, transposed: bool, add: bool) {
    let Extent { rows, cols, depth } = extent;
    let (b_step, c_step) = (cols + 3, cols + 5);
    let mut rng = Rng::new(3);
    let (a, b) = (rng.randn(rows * depth), rng.randn(depth * b_step));
    let before = rng.randn(rows * c_step);
    let (row, col) = if transposed { (1, rows) } else { (depth, 1) };
    let mut c = before.clone();
    let left = Lhs { numbers: &a, row, col };
    let right = Rhs {
        numbers: &b,
        step: b_step,
    };
    let place = Output {
        numbers: &mut c,
        step: c_step,
        add,
    };
    multiply(isa, extent, left, right, place);
    for i in 0..rows {
        for j in 0..c_step {
            let at = i * c_step + j;
            let products = (0..depth).map(|k| f64::from(a[i * row + k * col]) * f64::from(b[k * b_step + j]));
            let expected = match (j < cols, add) {
                (false, _) => f64::from(before[at]), // between the rows
                (true, false) => products.sum(),
                (true, true) => f64::from(before[at]) + products.sum::<f64>(),
            };
            let off = (f64::from(c[at]) - expected).abs();
            assert!(
                off < 1e-5,
                "{isa:?} {extent:?} transposed {transposed}: ({i}, {j}) is off by {off:.1e}"
            );
        }
    }
}
