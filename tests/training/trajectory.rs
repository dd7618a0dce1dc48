//! Losses, gradients and adapters are those of PyTorch and PEFT.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use candle_core::{Device, Tensor};
use vtrain::commands::train::build::trainer;
use vtrain::commands::{check_dataset, precompute};
use vtrain::config::RunConfig;
use vtrain::distributed::Single;

use super::{Run, fixture, relative};

fn reference(case: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(&format!("{case}.safetensors")), &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(candle_core::DType::F64).unwrap().to_vec1().unwrap()
}

fn assert_near(name: &str, ours: &[f64], theirs: &[f64], bound: f64) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    for (step, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let error = (ours / theirs - 1.0).abs();
        assert!(error <= bound, "{name} of step {}: {ours} for {theirs}", step + 1);
    }
}

/// All steps of a case on so many clips, from the run file to the adapter; it has so many tensors.
fn follow(case: &str, clips: usize, tensors: usize, more: &[&str]) -> Run {
    let run = Run::case(case, clips);
    run.train(more);
    let reference = reference(case);
    assert_near("loss", &run.column("loss"), &numbers(&reference["losses"]), 1e-4);
    assert_near(
        "grad_norm",
        &run.column("grad_norm"),
        &numbers(&reference["grad_norms"]),
        1e-4,
    );
    let (mut count, mut worst) = (0, 0f64);
    for (name, tensor) in run.adapter() {
        let theirs = &reference[&name.replacen("transformer.", "final.", 1)];
        let error = relative(&tensor, theirs);
        assert!(error <= 1e-3, "{name}: {error:e}");
        (count, worst) = (count + 1, worst.max(error));
    }
    assert_eq!(count, tensors);
    println!("{case}: adapters differ by {worst:.1e} at most");
    run
}

#[test]
fn ten_steps_give_the_losses_and_adapters_of_pytorch() {
    follow("plain", 12, 16, &[]);
}

#[test]
fn so_do_accumulated_micro_batches_clipped_once() {
    follow("accumulated", 12, 16, &[]);
}

#[test]
fn so_do_latents_that_are_sampled() {
    follow("sampled", 12, 16, &[]);
}

#[test]
fn so_does_flow_matching_of_wan_from_text() {
    follow("wan-t2v", 12, 32, &[]);
}

/// Latents drawn, timesteps of a normal distribution, weighted losses, micro-batches accumulated.
#[test]
fn so_does_flow_matching_of_wan_from_images() {
    follow("wan-i2v", 8, 40, &[]);
}

#[test]
fn so_does_flow_matching_of_ltx_video_from_text() {
    follow("ltx-t2v", 12, 48, &[]);
}

/// Half of the first frames given clean, latents drawn, timesteps of a normal distribution, micro-batches accumulated.
#[test]
fn so_does_flow_matching_of_ltx_video_from_first_frames() {
    follow("ltx-i2v", 8, 48, &[]);
}

/// The guidance scale that the model embeds is not the usual one; both kinds of blocks learn, and the refiner.
#[test]
fn so_does_flow_matching_of_hunyuan_video_from_text() {
    follow("hunyuan-t2v", 6, 54, &[]);
}

/// Latents drawn, timesteps of a normal distribution, micro-batches accumulated, captions that go with first frames.
#[test]
fn so_does_flow_matching_of_hunyuan_video_from_images() {
    follow("hunyuan-i2v-concat", 6, 36, &[]);
    follow("hunyuan-i2v-replace", 6, 36, &[]);
}

/// Latents drawn and normalised, captions of different lengths in a batch, a time that runs from noise to sample; both streams
/// learn, and what pools the text.
#[test]
fn so_does_flow_matching_of_mochi() {
    follow("mochi", 6, 30, &[]);
}

/// Min-SNR weights, noise with an offset, latents drawn, captions of different lengths beside each other.
#[test]
fn so_does_noise_that_allegro_predicts() {
    follow("allegro-t2v", 4, 32, &[]);
}

#[test]
fn keeping_everything_gives_what_computing_again_gives() {
    let (again, kept) = (
        follow("plain", 12, 16, &[]),
        follow("plain", 12, 16, &["--set", "train.gradient_checkpointing=false"]),
    );
    assert_near("loss", &kept.column("loss"), &again.column("loss"), 1e-6);
    let again = again.adapter();
    for (name, tensor) in kept.adapter() {
        assert!(relative(&tensor, &again[&name]) <= 1e-6, "{name}");
    }
}

#[test]
fn gradients_of_the_first_step_are_those_of_pytorch() {
    for (case, clips) in [
        ("accumulated", 12),
        ("wan-i2v", 8),
        ("ltx-i2v", 8),
        ("hunyuan-i2v-replace", 6),
        ("mochi", 6),
    ] {
        let run = Run::case(case, clips);
        let config = RunConfig::load(&run.file(), &[]).unwrap();
        let report = check_dataset::survey(&config.datasets, false);
        let family = precompute::open_model(&config).unwrap();
        let encoded =
            precompute::precompute(&config, &*family, &report, &[], &AtomicBool::new(false), &Single).unwrap();
        let (mut trainer, pairs) = trainer(&config, &*family, &encoded, &Device::Cpu, &Single).unwrap();
        let mut sums: Vec<Option<Tensor>> = vec![None; trainer.vars.len()];
        let accumulation = trainer.accumulation;
        for m in 0..accumulation {
            let micro_batch = trainer.source.micro_batch(m).unwrap();
            let passed = trainer.pass(&micro_batch).unwrap();
            for (sum, gradient) in sums.iter_mut().zip(passed.gradients) {
                let gradient = (gradient.unwrap() / accumulation as f64).unwrap();
                *sum = Some(sum.take().map_or(gradient.clone(), |sum| (sum + gradient).unwrap()));
            }
        }
        let reference = reference(case);
        for (pair, sums) in pairs.iter().zip(sums.chunks(2)) {
            for (half, sum) in ["lora_A", "lora_B"].iter().zip(sums) {
                let theirs = &reference[&format!("grad.{}.{half}.weight", pair.layer)];
                let error = relative(sum.as_ref().unwrap(), theirs);
                assert!(error <= 1e-4, "{case}: {} {half}: {error:e}", pair.layer);
            }
        }
    }
}

#[test]
fn four_hundred_steps_learn_as_much_as_pytorch_does() {
    let run = Run::case("long", 8);
    run.train(&[]);
    let (ours, theirs) = (run.column("loss"), numbers(&reference("long")["losses"]));
    assert_eq!((ours.len(), theirs.len()), (400, 400));
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (mean(&ours[..50]), mean(&ours[350..]));
    println!(
        "first 50: {first:.6}, last 50: {last:.6}; PyTorch's last 50: {:.6}",
        mean(&theirs[350..])
    );
    assert!(last < first, "{last} is not below {first}");
    assert!(
        (last / mean(&theirs[350..]) - 1.0).abs() <= 0.01,
        "{last} for {}",
        mean(&theirs[350..])
    );
}
