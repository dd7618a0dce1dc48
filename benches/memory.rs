//! Peak memory of a training step over the number of blocks: with gradient checkpointing it grows by what each block
//! receives (and by its weights and adapters), not by what it computes.
//!
//! `cargo bench --bench memory`. Each measurement is a process of its own: a tiny CogVideoX (two heads of 16) whose one
//! block is repeated, on 2,146 tokens.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use vtrain::diffusion::objective;
use vtrain::lora::{self, trainable::Trainable};
use vtrain::models::denoiser::Input;
use vtrain::models::{self, FamilyName};
use vtrain::nn::Load;
use vtrain::process::memory;
use vtrain::rng::Rng;
use vtrain::train::segments::{ActivationPolicy, FreeMemory, forward_backward};

/// Latent frames, rows and columns of a clip of 17 x 256 x 384; with 226 text tokens 2,146 in all.
const LATENTS: [usize; 3] = [5, 32, 48];
const TEXT: usize = 226;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if let [_, flag, folder, keep] = &args[..]
        && flag == "--child"
    {
        return child(Path::new(folder), keep == "inputs");
    }
    println!("{:>7} {:>22} {:>22}", "blocks", "checkpointing", "everything kept");
    let mut peaks: HashMap<(usize, &str), (f64, f64)> = HashMap::new();
    for blocks in [4, 8, 16] {
        let folder = tempfile::tempdir()?;
        let (block_input, block_weights) = checkpoint(folder.path(), blocks)?;
        let mut line = format!("{blocks:>7}");
        for keep in ["inputs", "all"] {
            let output = Command::new(&args[0])
                .arg("--child")
                .arg(folder.path())
                .arg(keep)
                .output()?;
            let peak: f64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
            line += &format!(" {:>18.1} MiB", peak / f64::from(1 << 20));
            peaks.insert((blocks, keep), (peak, (block_input + block_weights) as f64));
        }
        println!("{line}");
    }
    for keep in ["inputs", "all"] {
        let grown = (peaks[&(16, keep)].0 - peaks[&(4, keep)].0) / 12.0;
        let allowed = peaks[&(16, keep)].1;
        println!(
            "keep {keep}: {:.2} MiB for each block; its input, weights and adapters take {:.2} MiB",
            grown / f64::from(1 << 20),
            allowed / f64::from(1 << 20)
        );
    }
    Ok(())
}

/// One training pass and its peak in bytes.
fn child(folder: &Path, inputs: bool) -> anyhow::Result<()> {
    let family = models::open(folder, FamilyName::Auto)?;
    let config = lora::Config {
        rank: 4,
        alpha: 4.0,
        ..Default::default()
    };
    let trainable = Arc::new(Trainable::new(&config, &[], Rng::new(0), &Device::Cpu)?);
    let denoiser = family.denoiser(&Load::new(DType::F32, &Device::Cpu).with_adapters(trainable.clone()))?;
    let pairs = trainable.finish()?;
    let vars: Vec<Var> = pairs.iter().flat_map(|pair| [pair.a.clone(), pair.b.clone()]).collect();
    let width = family.spec().text().width;
    let channels = family.latent_size(17, 256, 384)?.shape[2];
    let mut rng = Rng::new(1);
    let mut randn = |shape: &[usize]| Tensor::from_vec(rng.randn(shape.iter().product()), shape, &Device::Cpu);
    let [frames, height, columns] = LATENTS;
    let latents = randn(&[1, frames, channels, height, columns])?;
    let text = randn(&[1, TEXT, width])?;
    let input = Input::new(latents, Tensor::new(&[500i64], &Device::Cpu)?, text);
    let target = randn(&[1, frames, channels, height, columns])?;
    let keep = if inputs {
        ActivationPolicy::Inputs
    } else {
        ActivationPolicy::All
    }
    .saved_activations(FreeMemory::Unknown);
    let loss = |prediction: &Tensor| objective::loss(prediction, &target, None);
    let passed = forward_backward(&*denoiser, &input, &loss, &vars, keep)?;
    assert!(passed.gradients.iter().all(Option::is_some));
    println!("{}", memory::resident().map_or(0, |memory| memory.peak));
    Ok(())
}

/// The fixtures' CogVideoX 5b with its first block so many times. Returns the bytes of a block's input, and of its weights
/// and adapters with their gradients.
fn checkpoint(folder: &Path, blocks: usize) -> anyhow::Result<(usize, usize)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox/cogvideox-5b");
    for part in ["vae", "scheduler", "tokenizer", "text_encoder"] {
        std::os::unix::fs::symlink(source.join(part), folder.join(part))?;
    }
    std::fs::copy(source.join("model_index.json"), folder.join("model_index.json"))?;
    let transformer = folder.join("transformer");
    std::fs::create_dir(&transformer)?;
    let config = std::fs::read_to_string(source.join("transformer/config.json"))?;
    let mut config: serde_json::Value = serde_json::from_str(&config)?;
    config["num_layers"] = blocks.into();
    std::fs::write(transformer.join("config.json"), config.to_string())?;
    let mut tensors = HashMap::new();
    let mut weights = 0;
    for entry in std::fs::read_dir(source.join("transformer"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|ending| ending != "safetensors") {
            continue;
        }
        for (name, tensor) in candle_core::safetensors::load(path, &Device::Cpu)? {
            match name.strip_prefix("transformer_blocks.") {
                None => drop(tensors.insert(name, tensor)),
                Some(inner) => {
                    if let Some(inner) = inner.strip_prefix("0.") {
                        weights += 4 * tensor.elem_count();
                        for block in 0..blocks {
                            tensors.insert(format!("transformer_blocks.{block}.{inner}"), tensor.clone());
                        }
                    }
                }
            }
        }
    }
    candle_core::safetensors::save(&tensors, transformer.join("diffusion_pytorch_model.safetensors"))?;
    let get = |key: &str| config[key].as_u64().unwrap_or(0) as usize;
    let width = get("num_attention_heads") * get("attention_head_dim");
    let tokens = TEXT + LATENTS[0] * (LATENTS[1] / 2) * (LATENTS[2] / 2);
    let adapters = 4 * 4 * 2 * width; // four layers, rank 4, A and B
    Ok((4 * tokens * width, weights + 2 * 4 * adapters))
}
