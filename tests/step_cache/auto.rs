//! `auto` on the model that ships.

use std::path::Path;

use candle_core::{DType, Device};
use vtrain::diffusion::guidance::Guidance;
use vtrain::models::{self, FamilyName};
use vtrain::nn::Load;
use vtrain::sample::step_cache::Work;
use vtrain::sample::{Request, pictures, sample};

use super::Model;

/// Bytes of a clip's pictures, and the number of passes that computed.
fn clip(prompt: &str, cache: &str, steps: usize) -> (Vec<u8>, usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/tiny-world");
    let family = models::open(&*folder, FamilyName::Auto).unwrap();
    let load = Load::new(DType::F32, &Device::Cpu);
    let request = Request {
        prompt: prompt.into(),
        negative_prompt: String::new(),
        steps,
        guidance: Guidance::classifier_free(3.0),
        ..Model("", 9, [64, 96]).request(cache)
    };
    let sampled = sample(&*family, &load, request, &|_, _| Ok(())).unwrap();
    let mut shown = Vec::new();
    let mut rng = sampled.rng.clone();
    let decoder = family.video_decoder(&load).unwrap();
    let mut see = |frames: candle_core::Tensor| {
        shown.extend(pictures(&frames)?.concat());
        Ok(())
    };
    decoder
        .decode(&sampled.latents, &sampled.size, &mut rng, &mut see)
        .unwrap();
    let passes = sampled.steps.iter().flat_map(|step| [step.positive, step.negative]);
    (shown, passes.filter(|work| *work == Some(Work::Computed)).count())
}

fn decibels(a: &[u8], b: &[u8]) -> f64 {
    let squares: f64 = a
        .iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum();
    10.0 * (255.0f64.powi(2) * a.len() as f64 / squares).log10()
}

#[test]
fn auto_saves_a_third_of_the_passes_of_the_tiny_world_at_35_db() {
    let prompt = "a red square turns";
    let [(plain, all), (cached, computed)] = ["none", "auto"].map(|cache| clip(prompt, cache, 50));
    let found = decibels(&plain, &cached);
    println!("{found:.1} dB, {computed} of {all} passes");
    assert!(
        all == 100 && found >= 35.0 && computed <= 66,
        "{found} dB with {computed} of {all} passes"
    );
}

/// On the tiny world no block is left out in so few steps, as its clips would change.
#[test]
fn auto_is_careful_in_fewer_steps() {
    let [(plain, _), (cached, computed)] = ["none", "auto"].map(|cache| clip("a blue ball grows", cache, 8));
    let found = decibels(&plain, &cached);
    assert!(found >= 35.0 && computed == 16, "{found} dB with {computed} passes");
}
