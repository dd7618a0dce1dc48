//! Attention and its gradients against torch's: 8 heads of 64 features, f32, the same threads on both sides.
//!
//! `PYTHON=/path/to/python cargo bench --bench attention`, where that Python has torch. Both sides alternate, one
//! forward and backward pass each, so that other load affects both; the figures are medians and minima.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use candle_core::{Device, Tensor, Var, safetensors};
use vtrain::ops::attention;

/// Tokens, and how often.
const RUNS: [(usize, usize); 2] = [(2146, 30), (8210, 8)];
const FLOP_PER_SCORE: f64 = 4.0 * 8.0 * 64.0; // there; two and a half times as many back

fn main() -> anyhow::Result<()> {
    let python = std::env::var_os("PYTHON").context("set PYTHON to a Python with torch")?;
    let threads = candle_core::utils::get_num_threads().to_string();
    let folder = tempfile::tempdir()?;
    let mut theirs = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench/bench_attention.py"))
        .arg(folder.path())
        .args(RUNS.map(|(tokens, _)| tokens.to_string()))
        .env("THREADS", &threads)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ask = theirs.stdin.take().context("no pipe to Python")?;
    let mut answers = BufReader::new(theirs.stdout.take().context("no pipe from Python")?).lines();
    ensure!(answers.next().context("Python has ended")?? == "ready");

    println!("{threads} threads");
    for (tokens, rounds) in RUNS {
        let answer = safetensors::load(folder.path().join(tokens.to_string()), &Device::Cpu)?;
        let vars = ["q", "k", "v"].map(|name| Var::from_tensor(&answer[name]));
        let [q, k, v] = vars;
        let (q, k, v, weights) = (q?, k?, v?, &answer["weights"]);
        let there_and_back = || -> anyhow::Result<_> {
            let start = Instant::now();
            let out = attention(&q, &k, &v, None)?;
            let there = start.elapsed().as_secs_f64();
            let loss = (&out * weights)?.sum_all()?;
            let start = Instant::now();
            let grads = loss.backward()?;
            Ok((there, start.elapsed().as_secs_f64(), out, grads))
        };
        let (_, _, out, grads) = there_and_back()?;
        let mut off = distance(&out, &answer["out"])?;
        for (var, name) in [(&q, "dq"), (&k, "dk"), (&v, "dv")] {
            off = off.max(distance(grads.get(var).context("no gradient")?, &answer[name])?);
        }
        println!("{tokens} tokens; largest difference, in parts of the largest number: {off:.1e}");

        let mut seconds: [Vec<f64>; 4] = Default::default(); // ours there, theirs there, ours back, theirs back
        for _ in 0..rounds {
            let (there, back, ..) = there_and_back()?;
            writeln!(ask, "{tokens}")?;
            let answer = answers.next().context("Python has ended")??;
            let (their_there, their_back) = answer.split_once(' ').context("not two numbers")?;
            for (seconds, now) in seconds
                .iter_mut()
                .zip([there, their_there.parse()?, back, their_back.parse()?])
            {
                seconds.push(now);
            }
        }
        seconds.iter_mut().for_each(|seconds| seconds.sort_by(f64::total_cmp));
        let flop = FLOP_PER_SCORE * (tokens * tokens) as f64;
        for (way, [ours, theirs], flop) in [
            ("there", [&seconds[0], &seconds[1]], flop),
            ("back", [&seconds[2], &seconds[3]], 2.5 * flop),
        ] {
            for (what, at) in [("median", rounds / 2), ("minimum", 0)] {
                let (ours, theirs) = (ours[at], theirs[at]);
                println!(
                    "{way:5} {what:8} vtrain {:7.1} ms, {:4.0} GFLOP/s   torch {:7.1} ms, {:4.0} GFLOP/s   ratio {:5.2} x",
                    ours * 1e3,
                    flop / ours / 1e9,
                    theirs * 1e3,
                    flop / theirs / 1e9,
                    ours / theirs
                );
            }
        }
    }
    drop(ask);
    theirs.wait()?;
    Ok(())
}

/// Returns the largest difference, relative to the largest number.
fn distance(found: &Tensor, expected: &Tensor) -> anyhow::Result<f32> {
    let largest = |x: &Tensor| x.abs()?.max_all()?.to_scalar::<f32>();
    Ok(largest(&(found - expected)?)? / largest(expected)?)
}
