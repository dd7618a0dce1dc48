//! AdamW with moments in 8 bits, against bitsandbytes' AdamW8bit. scripts/fixtures/make_adamw8bit.py writes what it does.

use std::process::Command;

use vtrain::optim::adamw::Name;
use vtrain::optim::dynamic_map::{BLOCK, DynamicMap};
use vtrain::optim::moments::MomentForm;

use super::*;
use crate::needs::python;

const SHAPES: [(usize, usize); 3] = [(64, 65), (3, 5), (50, 90)];
const STEPS: usize = 12;
/// Steps in which the last variable has no gradient.
const SILENT: usize = 2;

fn draws_of_script() -> (Vec<Tensor>, Vec<Vec<Tensor>>) {
    let mut rng = Rng::new(17);
    let mut randn = |scale: f32| -> Vec<Tensor> {
        let all = SHAPES.iter().map(|&shape| {
            let values: Vec<f32> = rng.randn(shape.0 * shape.1).into_iter().map(|x| x * scale).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        });
        all.collect()
    };
    let variables = randn(1.0);
    let mut gradients: Vec<Vec<Tensor>> = (0..STEPS).map(|_| randn(0.01)).collect();
    for silent in &mut gradients[..SILENT] {
        silent[2] = silent[2].zeros_like().unwrap();
    }
    (variables, gradients)
}

fn eight_bit() -> Config {
    Config {
        name: Name::Adamw8bit,
        weight_decay: 0.1,
        ..Config::default()
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn codes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn tensors(moments: &Moments) -> HashMap<&'static str, Tensor> {
    moments.clone().into_tensors().into_iter().collect()
}

/// The variables after all steps, and the moments after each.
fn walk() -> (Vec<Var>, Vec<Vec<Moments>>) {
    let (values, gradients) = draws_of_script();
    let vars = variables(&values);
    let mut optimizer = AdamW::new(vars.clone(), &eight_bit()).unwrap();
    let mut moments = Vec::new();
    for (step, gradients) in gradients.iter().enumerate() {
        optimizer.step(gradients, 1.0, rate(step)).unwrap();
        moments.push(optimizer.state().unwrap().moments);
    }
    (vars, moments)
}

/// Fails unless the steps are those of the script's file.
///
/// A number that lies halfway between two values to the last digit may get the other one's code where torch rounds otherwise:
/// of a thousand codes this many may be a neighbour's, and what follows from it differs by as much.
fn follows(expected: &HashMap<String, Tensor>, others_of_thousand: usize) {
    let (vars, moments) = walk();
    for (step, i) in [(0, 0), (SILENT, 2), (STEPS - 1, 0), (STEPS - 1, 2)] {
        let ours = tensors(&moments[step][i]);
        let theirs = |name: &str| &expected[&format!("exact.{step}.{i}.{name}")];
        for name in ["state1", "state2"] {
            let (ours, theirs) = (codes(&ours[name]), codes(theirs(name)));
            assert_eq!(ours.len(), theirs.len());
            let apart: Vec<u8> = ours.iter().zip(&theirs).map(|(a, b)| a.abs_diff(*b)).collect();
            let others = apart.iter().filter(|apart| **apart > 0).count();
            println!("step {step}, variable {i}: {others} other codes in {name}");
            assert!(
                others <= others_of_thousand * ours.len() / 1000,
                "{others} of {name} {i}"
            );
            assert!(apart.iter().all(|apart| *apart <= 1), "{name} {i}");
        }
        for name in ["absmax1", "absmax2"] {
            let off = error(&ours[name], theirs(name));
            assert!(off <= 1e-6, "{name} {i} after step {step}: {off:e}");
        }
    }
    let small = tensors(&moments[STEPS - 1][1]);
    for (ours, theirs) in [("exp_avg", "state1"), ("exp_avg_sq", "state2")] {
        let off = error(&small[ours], &expected[&format!("exact.{}.1.{theirs}", STEPS - 1)]);
        assert!(off <= 1e-6, "{ours}: {off:e}");
    }
    for (i, var) in vars.iter().enumerate() {
        let (ours, theirs) = (numbers(var), numbers(&expected[&format!("exact.{i}")]));
        let off: Vec<f32> = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).collect();
        let others = off.iter().filter(|off| **off > 1e-6).count();
        println!("variable {i}: {others} of {} differ", theirs.len());
        assert!(
            others <= others_of_thousand * theirs.len() / 500,
            "{others} of variable {i}"
        );
        let largest = off.iter().copied().fold(0.0, f32::max);
        assert!(largest <= 2e-4, "variable {i}: {largest:e}");
    }
}

#[test]
fn the_maps_of_8_bits_are_those_of_bitsandbytes_to_the_bit() {
    let expected = load("adamw8bit.safetensors");
    for (name, map) in [("signed", DynamicMap::signed()), ("unsigned", DynamicMap::unsigned())] {
        let ours = map.values().map(f32::to_bits).to_vec();
        assert_eq!(ours, bits(&expected[name]), "{name}");
    }
}

#[test]
fn each_number_of_a_block_is_at_the_nearest_value_of_the_map() {
    let mut rng = Rng::new(4);
    for (map, signed) in [(DynamicMap::signed(), true), (DynamicMap::unsigned(), false)] {
        for size in [BLOCK, 64, 1] {
            let mut block: Vec<f32> = rng.randn(size).into_iter().map(|x| x.powi(5) * 1e-3).collect();
            if !signed {
                block.iter_mut().for_each(|x| *x = x.abs());
            }
            let mut found = vec![0; size];
            let largest = map.encode(&block, &mut found);
            assert_eq!(largest, block.iter().fold(0f32, |most, x| most.max(x.abs())));
            let mut back = vec![0.0; size];
            map.decode(&found, largest, &mut back);
            for (x, back) in block.iter().zip(&back) {
                let nearest = map
                    .values()
                    .iter()
                    .map(|value| (value * largest - x).abs())
                    .fold(f32::MAX, f32::min);
                assert!((back - x).abs() <= nearest + 1e-6 * largest, "{x} became {back}");
            }
        }
        // Zeros stay zeros.
        let (mut found, mut back) = ([7; BLOCK], [1.0; BLOCK]);
        let largest = map.encode(&[0.0; BLOCK], &mut found);
        map.decode(&found, largest, &mut back);
        assert!(largest == 0.0 && back.iter().all(|x| *x == 0.0));
    }
}

#[test]
fn steps_are_those_of_bitsandbytes() {
    follows(&load("adamw8bit.safetensors"), 0);
}

#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn steps_are_those_of_bitsandbytes_as_it_is_installed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adamw8bit.safetensors");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/fixtures/make_adamw8bit.py");
    let output = Command::new(python()).arg(script).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    follows(&candle_core::safetensors::load(&file, &Device::Cpu).unwrap(), 1);
}

/// Its library for CPUs looks values up in a table with 65536 steps from end to end.
#[test]
fn bitsandbytes_table_for_cpus_is_a_step_off_at_most() {
    let expected = load("adamw8bit.safetensors");
    let (vars, moments) = walk();
    let ours = tensors(&moments[0][0]);
    for (name, map, span) in [
        ("state1", DynamicMap::signed(), 2.0),
        ("state2", DynamicMap::unsigned(), 1.0),
    ] {
        let theirs = codes(&expected[&format!("table.0.0.{name}")]);
        for (ours, theirs) in codes(&ours[name]).into_iter().zip(theirs) {
            if ours == theirs {
                continue;
            }
            // Between the two there is a middle that is no further than a step from the number.
            let values = [ours, theirs].map(|code| map.values()[usize::from(code)]);
            let between = usize::from(ours.abs_diff(theirs)) <= 1;
            let apart = (values[0] - values[1]).abs();
            assert!(between || apart <= 2.0 * span / 65536.0, "{name}: {ours} and {theirs}");
        }
    }
    for (i, var) in vars.iter().enumerate() {
        let (ours, theirs) = (numbers(var), numbers(&expected[&format!("table.{i}")]));
        let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("variable {i}: {off:.1e}");
        assert!(off <= 1e-3, "variable {i}: {off:e}"); // a tenth of the first step
    }
}

#[test]
fn moments_take_8_bits_from_4096_numbers_on() {
    for (name, count, form) in [
        (Name::Adamw8bit, 4095, MomentForm::Dense),
        (Name::Adamw8bit, 4096, MomentForm::Blockwise),
        (Name::Adamw, 4096, MomentForm::Dense),
    ] {
        assert_eq!(MomentForm::of(name, count), form, "{name:?} {count}");
        let var = Var::zeros(count, DType::F32, &Device::Cpu).unwrap();
        let config = Config {
            name,
            ..Config::default()
        };
        let optimizer = AdamW::new(vec![var], &config).unwrap();
        let moments = tensors(&optimizer.state().unwrap().moments[0]);
        let bytes: usize = moments
            .values()
            .map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes())
            .sum();
        assert_eq!(
            bytes,
            if form == MomentForm::Dense {
                8 * count
            } else {
                2 * (4096 + 16 * 4)
            }
        );
    }
}

#[test]
fn a_restored_optimiser_of_8_bits_goes_on_as_if_nothing_had_happened_with_any_number_of_threads() {
    let (values, gradients) = draws_of_script();
    let vars = variables(&values);
    let mut optimizer = AdamW::new(vars.clone(), &eight_bit()).unwrap();
    run(2, &mut optimizer, &vars, &gradients[..5]);
    let state = optimizer.state().unwrap();
    let kept: Vec<Tensor> = vars.iter().map(|var| var.copy().unwrap()).collect();
    let whole = run(2, &mut optimizer, &vars, &gradients[5..]);
    for threads in [1, 5] {
        let vars = variables(&kept);
        let mut optimizer = AdamW::new(vars.clone(), &eight_bit()).unwrap();
        optimizer.restore(state.clone()).unwrap();
        assert_eq!(run(threads, &mut optimizer, &vars, &gradients[5..]), whole);
    }
}

#[test]
fn moments_in_another_form_or_of_other_sizes_are_refused_and_change_nothing() {
    let (values, gradients) = draws_of_script();
    let vars = variables(&values);
    let mut optimizer = AdamW::new(vars.clone(), &eight_bit()).unwrap();
    run(1, &mut optimizer, &vars, &gradients[..3]);
    let before = optimizer.state().unwrap();
    let mut told = |change: &dyn Fn(&mut Vec<Moments>)| {
        let mut state = before.clone();
        change(&mut state.moments);
        optimizer.restore(state).unwrap_err().to_string()
    };
    let dense = AdamW::new(vars.clone(), &Config::default()).unwrap().state().unwrap();
    let other = told(&|moments| moments[0] = dense.moments[0].clone());
    assert!(other.contains("variable 0") && other.contains("Blockwise"), "{other}");
    let shape = told(&|moments| moments.swap(0, 2));
    assert!(shape.contains("state1 0 is [50, 90]"), "{shape}");
    let blocks = told(&|moments| {
        if let Moments::Blockwise { absmax2, .. } = &mut moments[0] {
            *absmax2 = absmax2.narrow(0, 0, 16).unwrap();
        }
    });
    assert!(blocks.contains("absmax2 0 is [16]"), "{blocks}");
    let dtype = told(&|moments| {
        if let Moments::Blockwise { state1, .. } = &mut moments[0] {
            *state1 = state1.to_dtype(DType::F32).unwrap();
        }
    });
    assert!(dtype.contains("state1 0 is in F32"), "{dtype}");
    let after = optimizer.state().unwrap();
    for (a, b) in before.moments.iter().zip(&after.moments) {
        let (a, b) = (tensors(a), tensors(b));
        assert!(a.iter().all(|(name, tensor)| {
            let [a, b] = [tensor, &b[name]].map(|tensor| numbers(&tensor.to_dtype(DType::F32).unwrap()));
            a == b
        }));
    }
}
