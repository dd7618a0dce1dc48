//! Decoding and resizing 16 clips of 49 frames to 49x480x720, against PyAV and torchvision with as many threads.
//!
//!     PYTHON=python cargo bench --bench decode
//!
//! PYTHON needs scripts/setup/requirements.txt. Runs alternate between the two, so that both see the same machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rayon::prelude::*;
use vtrain::video::{Clip, Crop, Fit, Writer};

const CLIPS: usize = 16;
const FRAMES: usize = 49;
const TARGET: (usize, usize) = (480, 720);
const RUNS: usize = 5;

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (height, width) in [(480, 720), (720, 1280)] {
        let paths: Vec<PathBuf> = (0..CLIPS).map(|n| make(folder.path(), n, (height, width))).collect();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            ours.push(load(&paths));
            theirs.extend(peer(&paths));
        }
        println!(
            "{CLIPS} clips of {FRAMES}x{height}x{width} to {}x{}:",
            TARGET.0, TARGET.1
        );
        println!("  vtrain  {}", spread(&mut ours));
        if theirs.is_empty() {
            println!("  peer    not run: set PYTHON to a Python that has scripts/setup/requirements.txt");
        } else {
            println!("  peer    {}", spread(&mut theirs));
            println!("  ratio of medians {:.2}", ours[RUNS / 2] / theirs[theirs.len() / 2]);
        }
    }
}

/// A clip with something to decode: a textured ground that drifts.
fn make(folder: &Path, n: usize, (height, width): (usize, usize)) -> PathBuf {
    let path = folder.join(format!("{height}-{n}.mp4"));
    let mut writer = Writer::create(&path, (height, width), 8.0).expect("an encoder");
    let mut frame = vec![0; height * width * 3];
    for t in 0..FRAMES {
        for (i, pixel) in frame.chunks_exact_mut(3).enumerate() {
            let (x, y) = ((i % width + 3 * t + 17 * n) as f32, (i / width + t) as f32);
            let wave = (x * 0.05).sin() * (y * 0.07).cos() + 0.3 * (x * 0.41).sin() * (y * 0.37).sin();
            pixel.copy_from_slice(&[
                (128.0 + 90.0 * wave) as u8,
                (x as usize % 256) as u8,
                (y as usize % 256) as u8,
            ]);
        }
        writer.push(&frame).expect("a frame of the right size");
    }
    writer.finish().expect("a film");
    path
}

fn load(paths: &[PathBuf]) -> f64 {
    let start = Instant::now();
    let wanted: Vec<usize> = (0..FRAMES).collect();
    let clips: Vec<_> = paths
        .par_iter()
        .map(|path| {
            let clip = Clip::open(path).expect("a clip");
            let fit = Fit::cover((clip.height(), clip.width()), TARGET, Crop::Center);
            clip.decode_fitted(&wanted, &fit).expect("frames")
        })
        .collect();
    let seconds = start.elapsed().as_secs_f64();
    assert!(
        clips
            .iter()
            .all(|clip| clip.data.len() == FRAMES * TARGET.0 * TARGET.1 * 3)
    );
    seconds
}

/// Two runs in a process of its own, the first to warm up.
fn peer(paths: &[PathBuf]) -> Option<f64> {
    let python = std::env::var_os("PYTHON")?;
    let threads = rayon::current_num_threads();
    let output = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench/bench_decode.py"))
        .args([2, threads, FRAMES, TARGET.0, TARGET.1].map(|n| n.to_string()))
        .args(paths)
        .output()
        .expect("PYTHON starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().last()?.parse().ok()
}

fn spread(seconds: &mut [f64]) -> String {
    seconds.sort_by(f64::total_cmp);
    let (least, middle, most) = (seconds[0], seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
    format!("median {middle:.3} s ({least:.3} to {most:.3})")
}
