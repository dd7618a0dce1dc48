//! A run on the tiny pretrained model teaches it an effect: `configs/cogvideox/quickstart.yaml` on `datasets/dissolve`.
//!
//! A pixel is the object's where it is coloured (its largest channel is more than 60 above its smallest; the ground's are
//! within 20) and of the four colours of `scripts/tiny_world/world.py` the asked one is nearest.
//! gone = max(0, 1 - pixels in the last frame / pixels in the first).

use std::fs;
use std::path::Path;
use std::process::Command;

use vtrain::video::Clip;

use super::{FINAL, Run, root};

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

/// Of all prompts and seeds: the mean of what is gone, and the share of videos whose first frame has the asked colour.
struct Seen {
    gone: f64,
    right: f64,
}

/// The nearest colours' names of the coloured pixels of a frame.
fn coloured(rgb: &[u8]) -> Vec<&'static str> {
    let far = |pixel: &[u8], colour: &[i32; 3]| -> i32 {
        pixel.iter().zip(colour).map(|(&a, b)| (i32::from(a) - b).pow(2)).sum()
    };
    rgb.chunks_exact(3)
        .filter(|pixel| pixel.iter().max().unwrap() - pixel.iter().min().unwrap() > 60)
        .map(|pixel| COLOURS.iter().min_by_key(|(_, colour)| far(pixel, colour)).unwrap().0)
        .collect()
}

fn see(folder: &Path, token: &str, lora: Option<&Path>) -> Seen {
    let (mut gone, mut right) = (0.0, 0.0);
    for prompt in HELD_OUT {
        let asked = prompt.split(' ').nth(1).unwrap();
        for seed in 0..SEEDS {
            let out = folder.join("frames/");
            let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
            command.args([
                "sample",
                "-qq",
                "--dtype",
                "f32",
                "--device",
                "cpu",
                "--num-frames",
                "9",
            ]);
            command.args([
                "--height",
                "64",
                "--width",
                "96",
                "--steps",
                "20",
                "--guidance-scale",
                "3",
            ]);
            command.arg("--model").arg(root().join("datasets/tiny-world"));
            command.args(["--prompt", &format!("{token}{prompt}"), "--seed", &seed.to_string()]);
            command.arg("--output").arg(format!("{}/", out.display()));
            if let Some(lora) = lora {
                command.arg("--lora").arg(lora);
            }
            assert!(command.status().unwrap().success());
            let mut files: Vec<_> = fs::read_dir(&out).unwrap().map(|file| file.unwrap().path()).collect();
            files.sort();
            let pixels = |file: &Path| coloured(&Clip::open(file).unwrap().decode(&[0]).unwrap().data);
            let (first, last) = (pixels(&files[0]), pixels(&files[8]));
            let count = |names: &[&str]| names.iter().filter(|&&name| name == asked).count() as f64;
            gone += (1.0 - count(&last) / count(&first).max(1.0)).max(0.0);
            right += f64::from(u8::from(
                count(&first) > 100.0 && count(&first) > 0.8 * first.len() as f64,
            ));
        }
    }
    let videos = (HELD_OUT.len() as u64 * SEEDS) as f64;
    Seen {
        gone: gone / videos,
        right: right / videos,
    }
}

#[test]
fn the_quickstart_teaches_an_effect_and_objects_keep_their_colours() {
    let text = fs::read_to_string(root().join("configs/cogvideox/quickstart.yaml")).unwrap();
    let text = text
        .replace("../../runs/quickstart", "out")
        .replace("../..", root().to_str().unwrap());
    let run = Run::new(&text);
    run.train(&["--set", "validation.every=100000"]);
    let adapter = run.out().join(FINAL);
    let folder = run.folder.path();
    let before = see(folder, "DISSOLVE_FX ", None);
    assert!(before.gone <= 0.2, "without the adapter {:.2} is gone", before.gone);
    let after = see(folder, "DISSOLVE_FX ", Some(&adapter));
    assert!(after.gone >= 0.6, "with the adapter only {:.2} is gone", after.gone);
    let plain = see(folder, "", Some(&adapter));
    assert!(plain.right >= 0.9, "only {:.2} have the asked colour", plain.right);
    if let Some(python) = std::env::var_os("VTRAIN_PYTHON") {
        let mut check = Command::new(python);
        check
            .arg(root().join("scripts/check_videos.py"))
            .arg(env!("CARGO_BIN_EXE_vtrain"));
        check.arg(root().join("datasets/tiny-world")).arg(&adapter);
        assert!(check.status().unwrap().success(), "diffusers makes other videos");
    }
}
