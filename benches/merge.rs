//! Peak memory of `vtrain lora merge`: shards stream through, so that it stays below one of them.
//!
//! `cargo bench --bench merge [-- GIGABYTES]`, 2 by default: a synthetic CogVideoX transformer of four shards in bf16,
//! and an adapter of rank 128 on all attention layers. Fails if the peak is above 1.3 times the largest shard.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};
use half::bf16;
use serde_json::{Map, json};
use vtrain::rng::Rng;

const SHARDS: usize = 4;
const WIDTH: usize = 3072;
const RANK: usize = 128;
const LAYERS: [&str; 4] = ["to_q", "to_k", "to_v", "to_out.0"];

fn main() -> anyhow::Result<()> {
    let size = std::env::args().find_map(|arg| arg.parse::<f64>().ok());
    let bytes = (size.unwrap_or(2.0) * 1e9) as usize;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let largest = checkpoint(&folder.path().join("model"), bytes)?;
    let blocks = blocks_of(bytes) * SHARDS;
    adapter(&folder.path().join("style.safetensors"), blocks)?;
    let started = Instant::now();
    let peak = merge(folder.path())?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "{SHARDS} shards, the largest {:.0} MiB, {blocks} blocks with adapters: peak {:.0} MiB ({:.2}x) in {:.1} s",
        mib(largest),
        mib(peak),
        peak as f64 / largest as f64,
        started.elapsed().as_secs_f64()
    );
    ensure!(
        peak as f64 <= 1.3 * largest as f64,
        "more than 1.3 times the largest shard"
    );
    Ok(())
}

/// Runs the command and watches its high-water mark, which the kernel keeps.
fn merge(folder: &Path) -> anyhow::Result<u64> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vtrain"))
        .args(["lora", "merge", "--model"])
        .arg(folder.join("model"))
        .arg("--lora")
        .arg(folder.join("style.safetensors"))
        .arg(folder.join("merged"))
        .stderr(Stdio::inherit())
        .spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Some(ended) = child.try_wait()? {
            ensure!(ended.success(), "vtrain lora merge failed");
            ensure!(peak > 0, "its memory was not seen");
            return Ok(peak);
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        let mark = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = mark.and_then(|mark| mark.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// In one shard.
fn blocks_of(bytes: usize) -> usize {
    (bytes / SHARDS / (LAYERS.len() * WIDTH * WIDTH * 2)).max(1)
}

/// Writes the checkpoint, a megabyte at a time. Returns the size of the largest shard.
fn checkpoint(folder: &Path, bytes: usize) -> anyhow::Result<u64> {
    let transformer = folder.join("transformer");
    fs::create_dir_all(&transformer)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox/cogvideox-5b");
    fs::copy(source.join("model_index.json"), folder.join("model_index.json"))?;
    fs::copy(source.join("transformer/config.json"), transformer.join("config.json"))?;
    let numbers: Vec<u8> = Rng::new(1)
        .randn(1 << 19)
        .into_iter()
        .flat_map(|x| bf16::from_f32(0.02 * x).to_le_bytes())
        .collect();
    let (mut places, mut largest) = (Map::new(), 0);
    for shard in 0..SHARDS {
        let name = format!("diffusion_pytorch_model-{:05}-of-{SHARDS:05}.safetensors", shard + 1);
        let (mut header, mut end) = (Map::new(), 0);
        for block in 0..blocks_of(bytes) {
            for layer in LAYERS {
                let tensor = format!(
                    "transformer_blocks.{}.attn1.{layer}.weight",
                    shard * blocks_of(bytes) + block
                );
                let begin = end;
                end += WIDTH * WIDTH * 2;
                header.insert(
                    tensor.clone(),
                    json!({"dtype": "BF16", "shape": [WIDTH, WIDTH], "data_offsets": [begin, end]}),
                );
                places.insert(tensor, json!(name));
            }
        }
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let path = transformer.join(&name);
        let mut file = BufWriter::new(File::create(&path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut left = end;
        while left > 0 {
            let part = left.min(numbers.len());
            file.write_all(&numbers[..part])?;
            left -= part;
        }
        file.flush()?;
        largest = largest.max(fs::metadata(&path)?.len());
    }
    let index = json!({"metadata": {}, "weight_map": places});
    fs::write(
        transformer.join("diffusion_pytorch_model.safetensors.index.json"),
        index.to_string(),
    )?;
    Ok(largest)
}

fn adapter(path: &Path, blocks: usize) -> anyhow::Result<()> {
    let mut rng = Rng::new(2);
    let mut tensors = BTreeMap::new();
    for block in 0..blocks {
        for layer in LAYERS {
            for (half, shape) in [("lora_A", (RANK, WIDTH)), ("lora_B", (WIDTH, RANK))] {
                let values = Tensor::from_vec(rng.randn(RANK * WIDTH), shape, &Device::Cpu)?;
                let name = format!("transformer.transformer_blocks.{block}.attn1.{layer}.{half}.weight");
                tensors.insert(name, values.to_dtype(DType::BF16)?);
            }
        }
    }
    fs::write(path, safetensors::serialize(&tensors, None)?).context("the adapter")
}
