//! The VAEs against diffusers: time and peak memory of encoding and decoding 17 frames of 128 x 192.
//!
//! `PYTHON=/path/to/python cargo bench --bench vae`, where that Python has torch and diffusers; without it only our own
//! figures are printed, on the weights in `$VAE` (a folder). `FAMILY=wan` takes Wan's VAE (full width) in place of
//! CogVideoX's (half). Every measurement has a process of its own; memory is the
//! peak resident size above what was resident after loading.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use vtrain::models::{cogvideox, wan};
use vtrain::nn::conv3d::{Conv3d, Geometry, Isa};

#[derive(Deserialize)]
struct Measured {
    seconds: [f64; 2],
    peak_bytes: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().filter(|argument| argument != "--bench").collect();
    if let [_, what, folder] = arguments.as_slice() {
        return measure(what, Path::new(folder));
    }
    let threads = std::thread::available_parallelism()?.to_string();
    let python = std::env::var_os("PYTHON");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench/bench_vae.py");
    let scratch = tempfile::tempdir()?;
    let folder = match (&python, std::env::var_os("VAE")) {
        (_, Some(folder)) => PathBuf::from(folder),
        (Some(python), None) => {
            let mut make = Command::new(python);
            let family = std::env::var("FAMILY").unwrap_or("cogvideox".into());
            run(make.arg(&script).arg("make").arg(scratch.path()).arg(family))?;
            scratch.path().to_path_buf()
        }
        (None, None) => anyhow::bail!("set PYTHON to a Python with diffusers, or VAE to a folder of weights"),
    };
    convolutions()?;
    println!("\n{threads} threads; the first run and the second, and the peak of both\n");
    for what in ["encode", "decode"] {
        let mut ours = Command::new(std::env::current_exe()?);
        let ours = parse(ours.arg(what).arg(&folder).env("RAYON_NUM_THREADS", &threads))?;
        print_line(what, "vtrain", &ours);
        let Some(python) = &python else { continue };
        let mut theirs = Command::new(python);
        let theirs = parse(theirs.arg(&script).arg(what).arg(&folder).env("THREADS", &threads))?;
        print_line(what, "diffusers", &theirs);
        println!(
            "{what:8}ratio      {:6.2} x  {:6.2} x  {:6.2} x\n",
            ours.seconds[0] / theirs.seconds[0],
            ours.seconds[1] / theirs.seconds[1],
            ours.peak_bytes as f64 / theirs.peak_bytes as f64
        );
    }
    Ok(())
}

/// One 3x3x3 convolution of 128 to 128 channels, 8 frames of 64 x 96: ours, and as a sum of candle's `conv2d`.
fn convolutions() -> anyhow::Result<()> {
    let device = Device::Cpu;
    let geometry = Geometry {
        kernel: [3, 3, 3],
        stride: 1,
        pad_rows: [1, 1],
        pad_columns: [1, 1],
        ..Geometry::CAUSAL
    };
    let x = Tensor::randn(0f32, 1f32, (1, 8, 64, 96, 128), &device)?;
    let weight = Tensor::randn(0f32, 1f32, (128, 128, 3, 3, 3), &device)?;
    let bias = Tensor::zeros(128, DType::F32, &device)?;
    let operations = 2.0 * 27.0 * 128.0 * 128.0 * 8.0 * 64.0 * 96.0;
    for (name, conv) in [
        ("direct", Conv3d::direct(&weight, &bias, geometry, Isa::detect())?),
        ("candle", Conv3d::by_candle(&weight, &bias, geometry)?),
    ] {
        conv.forward((&x).into())?;
        let begin = Instant::now();
        conv.forward((&x).into())?;
        let seconds = begin.elapsed().as_secs_f64();
        println!(
            "conv    {name:10} {seconds:6.3} s  {:6.0} GFLOP/s",
            operations / seconds / 1e9
        );
    }
    Ok(())
}

fn print_line(what: &str, who: &str, measured: &Measured) {
    let [first, second] = measured.seconds;
    let megabytes = measured.peak_bytes as f64 / 1e6;
    println!("{what:8}{who:10} {first:6.2} s  {second:6.2} s  {megabytes:6.0} MB");
}

fn run(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{error}", output.status);
    Ok(output.stdout)
}

fn parse(command: &mut Command) -> anyhow::Result<Measured> {
    Ok(serde_json::from_slice(&run(command)?)?)
}

/// Encodes or decodes, as is said.
type Code = Box<dyn Fn(&str, &Tensor) -> anyhow::Result<()>>;

/// Prints what `scripts/bench/bench_vae.py` prints.
fn measure(what: &str, folder: &Path) -> anyhow::Result<()> {
    let device = Device::Cpu;
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?;
    let is_wan = config["_class_name"] == "AutoencoderKLWan";
    let code: Code = if is_wan {
        let vae = wan::vae::Vae::load(folder, DType::F32, &device)?;
        Box::new(move |what, x| match what {
            "encode" => vae.encode(x).map(drop).map_err(Into::into),
            _ => vae.decode(x).map(drop).map_err(Into::into),
        })
    } else {
        let vae = cogvideox::vae::Vae::load(folder, DType::F32, &device)?;
        Box::new(move |what, x| match what {
            "encode" => vae.encode(x).map(drop).map_err(Into::into),
            _ => vae.decode(x).map(drop).map_err(Into::into),
        })
    };
    let clip = Tensor::rand(-1f32, 1f32, (1, 3, 17, 128, 192), &device)?;
    let latents = Tensor::randn(0f32, 1f32, (1, 16, 5, 16, 24), &device)?;
    std::fs::write("/proc/self/clear_refs", "5")?; // forget the peak of loading
    let baseline = status("VmRSS")?;
    let mut seconds = Vec::new();
    for _ in 0..2 {
        let begin = Instant::now();
        code(what, if what == "encode" { &clip } else { &latents })?;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    let peak_bytes = status("VmHWM")? - baseline;
    println!("{}", serde_json::json!({"seconds": seconds, "peak_bytes": peak_bytes}));
    Ok(())
}

/// A line of /proc/self/status, in bytes.
fn status(key: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text
        .lines()
        .find(|line| line.starts_with(key))
        .context("no such line")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kilobytes * 1024)
}
