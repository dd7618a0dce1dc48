//! Caches of what layers in blocks give, against what `scripts/fixtures/make_step_cache.py` recorded under diffusers' hooks: calls
//! and latents of whole runs.

use candle_core::Device;
use vtrain::diffusion::guidance::Guidance;
use vtrain::models::{self, FamilyName};
use vtrain::sample::step_cache::Work;
use vtrain::sample::{Request, Sampled, StepRecord};

use super::{Model, fixture, relative, sampled};

/// Frames, rows and columns of the recorded clips of a model.
fn recorded_size(model: &str) -> (usize, [usize; 2]) {
    match model {
        "ltx_video/ltx-0.9.0" => (9, [64, 96]),
        "mochi/tiny" => (7, [32, 48]),
        "allegro/tiny" => (8, [32, 48]),
        _ => (5, [32, 48]),
    }
}

/// Calls of the transformer as diffusers makes them: whether self-attention ran, and for how many samples.
fn calls(sampled: &Sampled, guided: bool) -> Vec<(bool, u8)> {
    let ran = |work| work == Some(Work::Computed);
    let of_step = |step: &StepRecord| match guided {
        // One batch there: the prompt's attention is left out where the negative prompt is, too.
        true => (ran(step.positive), 1 + u8::from(ran(step.negative))),
        false => (ran(step.positive), 1),
    };
    sampled.steps.iter().map(of_step).collect()
}

#[test]
fn layers_are_reused_as_in_diffusers() {
    let recorded = candle_core::safetensors::load(fixture("step_cache.safetensors"), &Device::Cpu).unwrap();
    let mut names: Vec<&String> = recorded.keys().filter(|name| name.starts_with("latents ")).collect();
    names.sort();
    let mut seen = 0;
    for name in names {
        let [_, model, scale, cache] = name.splitn(4, ' ').collect::<Vec<_>>().try_into().unwrap();
        let (frames, size) = recorded_size(model);
        let family = models::open(&*fixture(model), FamilyName::Auto).unwrap();
        let scale: f64 = scale.parse().unwrap();
        let request = Request {
            guidance: Guidance::of(family.spec().guidance, scale, 1.0),
            ..Model("", frames, size).request(cache)
        };
        let sampled = sampled(&fixture(model), request);
        let theirs = &recorded[&name.replacen("latents", "calls", 1)];
        let rows: Vec<Vec<u8>> = theirs.to_vec2().unwrap();
        let theirs: Vec<(bool, u8)> = rows[0]
            .iter()
            .zip(&rows[1])
            .map(|(ran, count)| (*ran == 1, *count))
            .collect();
        let mut found = calls(&sampled, scale > 1.0);
        if !cache.starts_with("fastercache") && scale > 1.0 {
            found.iter_mut().for_each(|call| call.1 = 2); // both always pass through the blocks
        }
        assert_eq!(found, theirs, "{name}");
        let theirs = recorded[name].reshape(sampled.latents.shape()).unwrap();
        let error = relative(&sampled.latents, &theirs);
        println!("{name}: {error:.1e}");
        assert!(error <= 1e-3, "{name}: {error}");
        seen += 1;
    }
    assert_eq!(seen, 17);
}
