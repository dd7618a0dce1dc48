//! Compares tiny transformers whose blocks are streamed with the same ones in memory, on the device itself: the losses of
//! some steps and the adapters behind them, to the bit; and how much of the blocks is on the device at once.

use std::fs;
use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;

use super::row::{Row, difference};
use super::training::{Extent, Model, Trained, bucket};
use crate::nn::Load;
use crate::nn::load::PartQuantization;
use crate::nn::residency::{Residency, ResidentShare};
use crate::nn::storage::quantize::Quantization;

/// Blocks, of which two at a time pass through the device.
const BLOCKS: usize = 6;

/// Largest share that two blocks may be of half of all and two more.
const MOST: f64 = 0.45;

/// Compares blocks of which none stay, and half, with all in memory, dense and in few bits.
pub fn compare(folder: &Path, name: &str, device: &Device, extent: Extent) -> anyhow::Result<Vec<Row>> {
    let folder = deepened(folder)?;
    let bucket = bucket(folder.path(), extent)?;
    let mut rows = Vec::new();
    for (dtype, form) in [(DType::F32, None), (DType::BF16, None), (DType::BF16, Some("nf4"))] {
        let load = Load::new(dtype, device).with_quantization(PartQuantization {
            transformer: form.and_then(Quantization::from_name),
            text_encoder: None,
        });
        let train = |load: &Load| Model::open(folder.path(), bucket, load, 0.0)?.train(extent.steps);
        let whole = train(&load)?;
        let form = form.map_or("", |_| ", nf4");
        let mut streamed = |share: f64| -> anyhow::Result<Trained> {
            let streamed = train(&load.with_residency(Residency::Streamed(ResidentShare::Share(share))))?;
            let what = format!("{name}, {share} of the blocks stay, {dtype:?}{form}");
            rows.extend(beside(&what, &streamed, &whole)?);
            Ok(streamed)
        };
        let [none, half] = [streamed(0.0)?, streamed(0.5)?];
        rows.push(in_memory(&format!("{name}, {dtype:?}{form}"), &none, &half));
    }
    Ok(rows)
}

/// Returns what must be the same bits.
fn beside(what: &str, streamed: &Trained, whole: &Trained) -> anyhow::Result<Vec<Row>> {
    let losses = |trained: &Trained| Tensor::new(trained.losses.clone(), &Device::Cpu);
    let row = |part: &str, error: f64| Row {
        what: format!("{what}: {part}"),
        error,
        most: 0.0,
        attention: streamed.attention.clone(),
    };
    Ok(vec![
        row("losses", difference(&losses(streamed)?, &losses(whole)?)?),
        row("adapters", difference(&streamed.adapters, &whole.adapters)?),
    ])
}

/// Compares the blocks in memory where none stay with those where half do: NaN, which fails, if none were streamed.
fn in_memory(what: &str, none: &Trained, half: &Trained) -> Row {
    let [none, half] = [none, half].map(|trained| trained.block_bytes.filter(|bytes| *bytes > 0));
    let share = none.zip(half).map(|(none, half)| none as f64 / half as f64);
    Row {
        what: format!("{what}: blocks in memory at most, of those where half stay"),
        error: share.unwrap_or(f64::NAN),
        most: MOST,
        attention: Vec::new(),
    }
}

/// Makes the settings of a transformer with [`BLOCKS`] blocks of each kind.
fn deepened(folder: &Path) -> anyhow::Result<TempDir> {
    let path = folder.join("transformer/config.json");
    let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut config: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
    for key in ["num_layers", "num_single_layers"] {
        if let Some(layers) = config.get_mut(key) {
            *layers = BLOCKS.into();
        }
    }
    let deep = tempfile::tempdir()?;
    fs::create_dir(deep.path().join("transformer"))?;
    fs::write(deep.path().join("transformer/config.json"), config.to_string())?;
    Ok(deep)
}
