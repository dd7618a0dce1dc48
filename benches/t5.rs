//! The T5 encoder against transformers: d_model 512, 8 layers, 226 tokens, f32, the same threads on both sides.
//!
//! `PYTHON=/path/to/python cargo bench --bench t5`, where that Python has torch and transformers. Both sides alternate,
//! one forward pass each, so that other load affects both; the figures are medians and minima.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use candle_core::{DType, Device, safetensors};
use vtrain::nn::Weights;
use vtrain::text::T5Encoder;
use vtrain::text::t5::Config;

const WARM_UP: usize = 5;
const ROUNDS: usize = 60;

fn main() -> anyhow::Result<()> {
    let python = std::env::var_os("PYTHON").context("set PYTHON to a Python with torch and transformers")?;
    let threads = candle_core::utils::get_num_threads().to_string();
    let folder = tempfile::tempdir()?;
    let mut theirs = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench/bench_t5.py"))
        .arg(folder.path())
        .env("THREADS", &threads)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ask = theirs.stdin.take().context("no pipe to Python")?;
    let mut answers = BufReader::new(theirs.stdout.take().context("no pipe from Python")?).lines();
    ensure!(answers.next().context("Python has ended")?? == "ready");

    let config = Config::load(&folder.path().join("config.json"))?;
    let encoder = T5Encoder::new(&config, Weights::open(folder.path(), DType::F32, &Device::Cpu)?)?;
    let answer = safetensors::load(folder.path().join("answer.bin"), &Device::Cpu)?;
    let ids = answer["ids"].to_dtype(DType::U32)?;
    let square = |x: &candle_core::Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>();
    let off = square(&(encoder.forward(&ids, None)? - &answer["out"])?)? / square(&answer["out"])?;
    println!(
        "{threads} threads; relative distance of the embeddings {:.1e}",
        off.sqrt()
    );

    let (mut ours_seconds, mut their_seconds) = (Vec::new(), Vec::new());
    for round in 0..WARM_UP + ROUNDS {
        let start = Instant::now();
        encoder.forward(&ids, None)?;
        let ours = start.elapsed().as_secs_f64();
        writeln!(ask)?;
        let theirs: f64 = answers.next().context("Python has ended")??.parse()?;
        if round >= WARM_UP {
            ours_seconds.push(ours);
            their_seconds.push(theirs);
        }
    }
    drop(ask);
    theirs.wait()?;
    ours_seconds.sort_by(f64::total_cmp);
    their_seconds.sort_by(f64::total_cmp);
    for (what, at) in [("median", ROUNDS / 2), ("minimum", 0)] {
        let (ours, theirs) = (ours_seconds[at] * 1e3, their_seconds[at] * 1e3);
        println!(
            "{what:8} vtrain {ours:7.1} ms   transformers {theirs:7.1} ms   ratio {:5.2} x",
            ours / theirs
        );
    }
    Ok(())
}
