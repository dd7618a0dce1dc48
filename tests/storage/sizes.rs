//! Memory of transformers in few bits.

use candle_core::{DType, Device};
use serde_json::{Value, json};
use vtrain::data::Bucket;
use vtrain::models::registry;
use vtrain::nn::storage::quantize::Quantization;
use vtrain::nn::{Load, Weights};

/// Largest share of the bytes in bf16.
const SHARES: [(&str, f64); 4] = [("nf4", 0.27), ("q4_k", 0.29), ("int8", 0.53), ("fp8-scaled", 0.53)];

/// Bytes of the frozen weights, made up, of a transformer with this config.
fn bytes(config: &Value, form: Option<Quantization>) -> usize {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("transformer")).unwrap();
    std::fs::write(folder.path().join("transformer/config.json"), config.to_string()).unwrap();
    let family = registry::of_transformer(&folder.path().join("transformer")).unwrap();
    let weights =
        Weights::random(&Load::new(DType::BF16, &Device::Cpu)).quantized(form, &family.dense_modules.of(form));
    let bucket = Bucket {
        frames: 9,
        height: 32,
        width: 32,
    };
    registry::open_synthetic(folder.path(), weights.clone(), bucket, 1).unwrap();
    if form.is_none() {
        assert!(weights.bytes() >= 2 * weights.taken()); // some stay in f32
    }
    weights.bytes()
}

#[test]
fn a_small_transformer_takes_its_share_of_memory() {
    let config = json!({
        "_class_name": "CogVideoXTransformer3DModel", "num_attention_heads": 8, "attention_head_dim": 64, "num_layers": 6,
        "in_channels": 16, "out_channels": 16, "text_embed_dim": 512, "time_embed_dim": 512,
        "use_rotary_positional_embeddings": true
    });
    let dense = bytes(&config, None) as f64;
    for (name, most) in SHARES {
        let share = bytes(&config, Quantization::from_name(name)) as f64 / dense;
        println!("{name}: {share:.4} of bf16");
        assert!(share <= most, "{name}: {share}");
    }
}

/// The width and the feed-forward layers of Wan 2.1 1.3B. Only its blocks are counted: there are thirty of them.
#[test]
fn a_block_of_a_real_width_takes_its_share_of_memory() {
    let config = |layers: usize| {
        json!({
            "_class_name": "WanTransformer3DModel", "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
            "num_attention_heads": 12, "attention_head_dim": 128, "num_layers": layers, "ffn_dim": 8960, "text_dim": 64,
            "freq_dim": 256, "cross_attn_norm": true, "qk_norm": "rms_norm_across_heads", "eps": 1e-6
        })
    };
    let block = |form| (bytes(&config(2), form) - bytes(&config(1), form)) as f64;
    let dense = block(None);
    for (name, most) in &SHARES[..2] {
        let share = block(Quantization::from_name(name)) / dense;
        println!("{name}: {share:.4} of bf16");
        assert!(share <= *most, "{name}: {share}");
    }
}
