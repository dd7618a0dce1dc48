//! residual.cu against sums in f64.

use candle_core::DType;
use vtrain::ops::residual::launch;
use vtrain::rng::Rng;

use super::card::Card;
use super::exact::{Exact, assert_exact, draw};
use super::rows::{Case, cases};

/// Computes each number from those of two tensors and the gate.
fn by_number(case: &Case, [a, b]: [&[f64]; 2], gate: &[f64], of: impl Fn(f64, f64, f64) -> Exact) -> Vec<Exact> {
    let mut all = Vec::new();
    for ((a, b), place) in a.chunks(case.width).zip(b.chunks(case.width)).zip(case.places()) {
        let numbers = a.iter().zip(b).zip(case.row(gate, place));
        all.extend(numbers.map(|((a, b), gate)| of(*a, *b, *gate)));
    }
    all
}

pub fn forward(card: &Card) {
    let mut rng = Rng::new(1);
    for case in cases() {
        let what = format!("a gated residual of {case:?}");
        let [x, update] = [(); 2].map(|()| draw(&mut rng, case.count() * case.width, case.dtype));
        let gate = draw(&mut rng, case.table(), DType::F32);
        let expected = by_number(&case, [&x, &update], &gate, |x, update, gate| {
            Exact::sum([x, gate * update])
        });
        card.each_way(
            &what,
            |run| {
                let [x, update] = [&x, &update].map(|numbers| run.given(numbers, case.dtype));
                let (y, gate) = (run.room(expected.len(), case.dtype), run.given(&gate, DType::F32));
                let places = [x.at(), update.at()];
                run.launch(launch::forward(case.rows(), places, gate.at(), case.samples(), y.at()));
                [y.numbers()]
            },
            |[y]| assert_exact(&what, &y, &expected, case.dtype, 1.0),
        );
    }
}

pub fn back(card: &Card) {
    let mut rng = Rng::new(2);
    for case in cases() {
        let what = format!("a gated residual back of {case:?}");
        let grad = draw(&mut rng, case.count() * case.width, case.dtype);
        let gate = draw(&mut rng, case.table(), DType::F32);
        let expected = by_number(&case, [&grad, &grad], &gate, |grad, _, gate| Exact::sum([gate * grad]));
        card.each_way(
            &what,
            |run| {
                let (grad, dupdate) = (run.given(&grad, case.dtype), run.room(grad.len(), case.dtype));
                let gate = run.given(&gate, DType::F32);
                run.launch(launch::back(
                    case.rows(),
                    grad.at(),
                    gate.at(),
                    case.samples(),
                    dupdate.at(),
                ));
                [dupdate.numbers()]
            },
            |[dupdate]| assert_exact(&what, &dupdate, &expected, case.dtype, 1.0),
        );
    }
}

pub fn gate(card: &Card) {
    let mut rng = Rng::new(3);
    for case in cases() {
        let what = format!("the gate of a residual of {case:?}");
        let [update, grad] = [(); 2].map(|()| draw(&mut rng, case.count() * case.width, case.dtype));
        let products = update.iter().zip(&grad);
        let products: Vec<Exact> = products.map(|(update, grad)| Exact::sum([update * grad])).collect();
        let expected = case.summed(&products);
        card.each_way(
            &what,
            |run| {
                let [update, grad] = [&update, &grad].map(|numbers| run.given(numbers, case.dtype));
                let slices = case.rows().slices();
                let dgate = run.room(expected.len() * slices, DType::F32);
                run.launch(launch::gate(case.rows(), update.at(), grad.at(), dgate.at()));
                [case.gathered(&dgate.numbers(), slices)]
            },
            |[dgate]| assert_exact(&what, &dgate, &expected, DType::F32, 4.0),
        );
    }
}
