use candle_core::Var;
use vtrain::ops::vjp::{Cotangent, vjp};

use super::elementwise::{numbers, randn};

#[test]
fn gradients_go_on_from_those_of_the_outputs() {
    let x = Var::from_tensor(&randn(1, &[3, 4])).unwrap();
    let outputs = [x.sqr().unwrap(), (x.as_tensor() * 3.0).unwrap(), randn(2, &[2])];
    let due = [randn(3, &[3, 4]), randn(4, &[3, 4]), randn(5, &[2])];
    let given = outputs.into_iter().zip(&due).map(|(output, gradient)| Cotangent {
        output,
        gradient: gradient.clone(),
    });
    let given: Vec<Cotangent> = given.collect();
    let store = vjp(&given).unwrap().unwrap();
    let [x_numbers, first, second] = [x.as_tensor(), &due[0], &due[1]].map(numbers);
    for (i, found) in numbers(store.get(&x).unwrap()).into_iter().enumerate() {
        let expected = 2.0 * x_numbers[i] * first[i] + 3.0 * second[i];
        assert!((found - expected).abs() <= 1e-5, "{found} {expected}");
    }
    assert!(vjp(&given[2..]).unwrap().is_none(), "nothing there learns");
    let swapped = Cotangent {
        gradient: due[2].clone(),
        ..given[0].clone()
    };
    assert!(vjp(&[swapped]).is_err());
}
