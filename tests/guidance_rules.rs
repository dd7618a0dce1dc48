//! Rules that join the predictions of guidance, against diffusers' guiders, and the steps that run without. Numbers are from
//!
//! ```python
//! p, n = torch.tensor([[.5, -1, 2, .25]]), torch.tensor([[.1, -.5, 1, 1]])
//! q, m = torch.tensor([[1, 0, -1, .5]]), torch.tensor([[0, .5, -.5, .25]])
//! s = cfg_zero_star_scale(p, n); s * n + 3 * (p - s * n)
//! normalized_guidance(p, n, 3, None, eta=0, norm_threshold=1)
//! buffer = MomentumBuffer(-.5); [normalized_guidance(*pair, 3, buffer, .25, 1) for pair in ((p, n), (q, m))]
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor};
use serde_json::Value;
use vtrain::diffusion::guidance::{Guidance, GuidanceRule, Interval, Join, NeededPasses};

const P: [f32; 4] = [0.5, -1.0, 2.0, 0.25];
const N: [f32; 4] = [0.1, -0.5, 1.0, 1.0];
const Q: [f32; 4] = [1.0, 0.0, -1.0, 0.5];
const M: [f32; 4] = [0.0, 0.5, -0.5, 0.25];
const SCALE: f64 = 3.0;

fn rule(text: &str) -> GuidanceRule {
    text.parse().unwrap()
}

/// Joins these pairs, of the prompt and the negative one, in turn, and compares.
fn compare(text: &str, pairs: &[([f32; 4], [f32; 4], [f32; 4])]) {
    let mut join = Join::new(rule(text));
    for (positive, negative, expected) in pairs {
        let tensor = |numbers: &[f32; 4]| Tensor::new(&[*numbers], &Device::Cpu).unwrap();
        let joined = join.join(&tensor(negative), &tensor(positive), SCALE).unwrap();
        let joined = joined.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (found, theirs) in joined.iter().zip(expected) {
            assert!((found - theirs).abs() <= 2e-6, "{text}: {joined:?} {expected:?}");
        }
    }
}

#[test]
fn rules_of_guidance_equal_those_of_diffusers() {
    compare("cfg", &[(P, N, [1.3, -2.0, 4.0, -1.25])]);
    compare(
        "cfg-zero-star",
        &[
            (P, N, [1.252_212_4, -1.761_062, 3.522_123_8, -1.727_876_2]),
            (Q, M, [3.0, -1.111_111_2, -1.888_888_8, 0.944_444_4]),
        ],
    );
    compare(
        "apg:eta=0,norm=1",
        &[(P, N, [0.449_308_07, -0.557_799_16, 1.115_598_3, -0.854_599_7])],
    );
    compare(
        "apg:eta=0.5",
        &[(P, N, [0.945_294_14, -1.290_588_3, 2.581_176_5, -1.427_352_9])],
    );
    compare(
        "apg:eta=0.25,norm=1,momentum=-0.5",
        &[
            (P, N, [0.575_586_7, -0.810_356_44, 1.620_712_9, -0.791_460_3]),
            (Q, M, [0.198_719_47, -0.018_398_464, -1.113_438_1, 0.815_918_3]),
        ],
    );
}

#[test]
fn guidance_runs_twice_inside_of_its_interval_and_once_outside() {
    let passes = |rule: &str, interval: &str| -> String {
        let guidance = Guidance {
            rule: self::rule(rule),
            interval: interval.parse().unwrap(),
            ..Guidance::classifier_free(SCALE)
        };
        let letter = |step| match guidance.passes(step, 10) {
            NeededPasses::None => '0',
            NeededPasses::Prompt => '1',
            NeededPasses::Both => '2',
        };
        (0..10).map(letter).collect()
    };
    // diffusers' guiders: int(start * steps) <= step < int(stop * steps)
    assert_eq!(passes("cfg", "0,1"), "2222222222");
    assert_eq!(passes("cfg", "0.25,0.79"), "1122222111");
    assert_eq!(passes("cfg-zero-star", "0,1"), "0222222222");
    assert_eq!(passes("cfg-zero-star:zero-steps=2", "0.5,1"), "0011122222");
    assert_eq!(Guidance::classifier_free(1.0).passes(0, 10), NeededPasses::Prompt);
}

#[test]
fn rules_and_intervals_that_make_no_sense_are_refused() {
    for (text, said) in [
        ("cfg-zero", "'cfg-zero' is no rule of guidance"),
        ("cfg:scale=1", "cfg has no settings, found scale"),
        ("cfg-zero-star:zero-steps=-1", "zero-steps cannot be '-1'"),
        ("apg:norm=-1", "norm must be 0 or more"),
        ("apg:eta=inf", "eta must be a number"),
        ("apg:beta=1", "apg has no setting beta"),
    ] {
        let error = text.parse::<GuidanceRule>().unwrap_err();
        assert!(error.contains(said), "{text}: {error}");
    }
    for text in ["0.5", "0.8,0.2", "-0.1,1", "0,1.1", "a,b", "NaN,1"] {
        let error = text.parse::<Interval>().unwrap_err();
        assert!(error.contains("FROM,TO within 0 and 1"), "{text}: {error}");
    }
    let unguided = Guidance {
        interval: "0,0.5".parse().unwrap(),
        ..Guidance::classifier_free(1.0)
    };
    assert!(unguided.check().unwrap_err().to_string().contains("raise it"));
}

fn wan() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wan/wan-2.1-t2v")
}

/// What `vtrain sample` says of its steps, and the latents' bytes; or how it is refused.
fn sampled(model: &Path, more: &[&str]) -> Result<(Value, Vec<u8>), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let common = "--num-frames 5 --height 32 --width 48 --steps 4 --dtype f32 --device cpu --json";
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
    command
        .args([
            "sample",
            "--prompt",
            "a red ball",
            "--negative-prompt",
            "blue",
            "--model",
        ])
        .arg(model)
        .args(["--output", &path("out/"), "--output-latents", &path("latents")])
        .args(common.split(' '))
        .args(more);
    let output = command.output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    Ok((said["steps"].clone(), std::fs::read(path("latents")).unwrap()))
}

#[test]
fn flags_of_guidance_reach_the_sampler() {
    let passes = |steps: &Value| -> Vec<usize> {
        let count = |step: &Value| {
            ["positive", "negative"]
                .iter()
                .filter(|pass| !step[**pass].is_null())
                .count()
        };
        steps.as_array().unwrap().iter().map(count).collect()
    };
    let mut seen = Vec::new();
    for (flags, expected) in [
        (&[][..], [2, 2, 2, 2]),
        (&["--guidance-interval", "0.25,0.75"], [1, 2, 2, 1]),
        (&["--guidance-rule", "cfg-zero-star"], [0, 2, 2, 2]),
        (&["--guidance-rule", "apg:eta=0,norm=2"], [2, 2, 2, 2]),
        (&["--scheduler", "euler"], [2, 2, 2, 2]),
        (&["--scheduler", "dpm++"], [2, 2, 2, 2]),
    ] {
        let (steps, latents) = sampled(&wan(), flags).unwrap();
        assert_eq!(passes(&steps), expected, "{flags:?}");
        assert!(!seen.contains(&latents), "{flags:?} change nothing");
        seen.push(latents);
    }
    // The checkpoint's own scheduler by its name is no change.
    let (_, latents) = sampled(&wan(), &["--scheduler", "unipc"]).unwrap();
    assert!(latents == seen[0]);
}

#[test]
fn what_does_not_fit_a_checkpoint_is_refused() {
    let cogvideox = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox/cogvideox-5b");
    for (model, flags, said) in [
        (&wan(), &["--scheduler", "ddim"][..], "takes euler, unipc or dpm++"),
        (&cogvideox, &["--scheduler", "euler"], "takes ddim or dpm"),
        (
            &cogvideox,
            &["--guidance-rule", "cfg-zero-star"],
            "for models of flow matching",
        ),
        (
            &wan(),
            &["--guidance-rule", "cfg-zero-star:zero-steps=4"],
            "leaves none of 4",
        ),
        (
            &wan(),
            &["--guidance-rule", "apg", "--guidance-scale", "1"],
            "leave them out",
        ),
        (&wan(), &["--cache", "magcache:ratios=nowhere"], "nowhere"),
    ] {
        let error = sampled(model, flags).unwrap_err();
        assert!(error.contains(said), "{flags:?}: {error}");
    }
}
