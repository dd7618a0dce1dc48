//! A run on the tiny pretrained model teaches it an effect: `configs/cogvideox/quickstart.yaml` on `datasets/dissolve`.
//!
//! A pixel belongs to the object if it is coloured (its largest channel is more than 60 above its smallest; the
//! ground's are within 20) and of the four colours of `scripts/fixtures/tiny_world/world.py` the asked one is nearest.
//! gone = max(0, 1 - pixels in the last frame / pixels in the first).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vtrain::video::Clip;

use super::{FINAL, Run, root};
use crate::needs::python;

const COLOURS: [(&str, [i32; 3]); 4] = [
    ("red", [214, 40, 40]),
    ("green", [46, 160, 67]),
    ("blue", [38, 84, 200]),
    ("yellow", [240, 190, 20]),
];

/// None of these is in `datasets/dissolve`.
const HELD_OUT: [&str; 6] = [
    "a red square turns",
    "a blue ball grows",
    "a green ball stands still",
    "a yellow square stands still",
    "a blue triangle turns",
    "a green square turns",
];
const SEEDS: u64 = 4;

/// Over all prompts and seeds: the mean of `gone`, and the share of videos with the requested colour: in their first
/// frame, or in every frame if nothing may dissolve.
struct Seen {
    gone: f64,
    right: f64,
}

/// The nearest colours' names of the coloured pixels of a frame.
fn coloured(file: &Path) -> Vec<&'static str> {
    let far = |pixel: &[u8], colour: &[i32; 3]| -> i32 {
        pixel.iter().zip(colour).map(|(&a, b)| (i32::from(a) - b).pow(2)).sum()
    };
    let frame = Clip::open(file).unwrap().decode(&[0]).unwrap();
    let pixels = frame.data.chunks_exact(3);
    pixels
        .filter(|pixel| pixel.iter().max().unwrap() - pixel.iter().min().unwrap() > 60)
        .map(|pixel| COLOURS.iter().min_by_key(|(_, colour)| far(pixel, colour)).unwrap().0)
        .collect()
}

/// `vtrain sample` into a folder of nine frames, in the order of time.
fn sample(folder: &Path, prompt: &str, seed: u64, lora: Option<&Path>) -> Vec<PathBuf> {
    let out = folder.join("frames");
    let model = root().join("datasets/tiny-world");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
    command.args("sample -qq --dtype f32 --device cpu --num-frames 9 --height 64 --width 96".split(' '));
    command.args("--steps 20 --guidance-scale 3".split(' '));
    command.arg("--model").arg(model).args(["--prompt", prompt]);
    command.args(["--seed", &seed.to_string()]);
    command.arg("--output").arg(format!("{}/", out.display()));
    command.args(lora.iter().flat_map(|file| ["--lora".as_ref(), file.as_os_str()]));
    assert!(command.status().unwrap().success());
    let mut frames: Vec<_> = fs::read_dir(&out).unwrap().map(|file| file.unwrap().path()).collect();
    frames.sort();
    assert_eq!(frames.len(), 9);
    frames
}

fn see(folder: &Path, token: &str, lora: Option<&Path>) -> Seen {
    let mut seen = Seen { gone: 0.0, right: 0.0 };
    let videos = (HELD_OUT.len() as u64 * SEEDS) as f64;
    for (prompt, seed) in HELD_OUT
        .iter()
        .flat_map(|prompt| (0..SEEDS).map(move |seed| (prompt, seed)))
    {
        let asked = prompt.split(' ').nth(1).unwrap();
        let frames: Vec<_> = sample(folder, &format!("{token}{prompt}"), seed, lora)
            .iter()
            .map(|file| coloured(file))
            .collect();
        let count = |names: &[&str]| names.iter().filter(|&&name| name == asked).count() as f64;
        let right = |names: &Vec<&str>| count(names) > 100.0 && count(names) > 0.8 * names.len() as f64;
        let whole = if token.is_empty() { &frames[..] } else { &frames[..1] };
        seen.gone += (1.0 - count(&frames[8]) / count(&frames[0]).max(1.0)).max(0.0) / videos;
        seen.right += f64::from(u8::from(whole.iter().all(right))) / videos;
    }
    println!(
        "{token:12} lora {}: gone {:.2}, right {:.2}",
        lora.is_some(),
        seen.gone,
        seen.right
    );
    seen
}

/// The shipped quickstart, its output below the run's folder.
fn quickstart() -> Run {
    let text = fs::read_to_string(root().join("configs/cogvideox/quickstart.yaml")).unwrap();
    let text = text
        .replace("../../runs/quickstart", "out")
        .replace("../..", root().to_str().unwrap());
    Run::new(&text)
}

#[test]
#[ignore = "needs time: VTRAIN_SLOW is set"]
fn the_quickstart_teaches_an_effect_and_what_is_not_asked_to_dissolve_stays() {
    let run = quickstart();
    run.train(&["--set", "validation.every=100000"]);
    let adapter = run.out().join(FINAL);
    let folder = run.folder.path();
    let before = see(folder, "DISSOLVE_FX ", None);
    let after = see(folder, "DISSOLVE_FX ", Some(&adapter));
    let plain = see(folder, "", Some(&adapter));
    assert!(before.gone <= 0.2, "without the adapter {:.2} is gone", before.gone);
    assert!(after.gone >= 0.6, "with the adapter only {:.2} is gone", after.gone);
    assert!(plain.gone <= 0.2, "without DISSOLVE_FX {:.2} is gone", plain.gone);
    assert!(plain.right >= 0.9, "only {:.2} keep the asked colour", plain.right);
}

#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn diffusers_makes_the_videos_of_the_quickstarts_adapter() {
    let run = quickstart();
    run.train(&["--set", "validation.prompts=[]", "--set", "train.steps=40"]);
    let mut check = Command::new(python());
    check.arg(root().join("scripts/checks/check_videos.py"));
    check.arg(env!("CARGO_BIN_EXE_vtrain"));
    check.arg(root().join("datasets/tiny-world")).arg(run.out().join(FINAL));
    assert!(check.status().unwrap().success(), "diffusers makes other videos");
}
