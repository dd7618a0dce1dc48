//! The largest sizes that settings of a model, a data set or a run may name, and the first that are refused.

use std::fs;
use std::path::Path;

use candle_core::Device;
use serde_json::{Value, json};
use vtrain::config::RunConfig;
use vtrain::data::{self, Bucket};
use vtrain::diffusers_config::Config;
use vtrain::diffusion::schedulers::config::Config as Schedule;
use vtrain::models::{allegro, cogvideox, hunyuan_video, ltx_video, mochi, wan};
use vtrain::problems::Problems;
use vtrain::text::sentencepiece::SentencePiece;
use vtrain::text::special::{SideFiles, SpecialTokens};
use vtrain::text::{clean, t5};
use vtrain::vision::{Preprocessor, clip};

/// A fixture's config, with this under a key.
fn with(part: &str, key: &str, value: Value) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(part)
        .join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    config[key] = value;
    config.to_string()
}

fn complaint<C: Config>(part: &str, key: &str, value: Value) -> String {
    C::parse(&with(part, key, value))
        .err()
        .map_or_else(String::new, |error| format!("{error:#}"))
}

/// The largest value that is not refused by its key, and the one above it.
fn edge(key: &str, most: usize, refused: impl Fn(Value) -> String) {
    let (within, beyond) = (refused(json!(most)), refused(json!(most + 1)));
    assert!(!within.contains(key), "{key}: {most}: {within}");
    assert!(beyond.contains(key), "{key}: {}: {beyond}", most + 1);
}

#[test]
fn sizes_of_models_end_where_no_checkpoint_has_more() {
    let dit = "cogvideox/cogvideox-2b/transformer";
    edge("in_channels", 1 << 24, |n| {
        complaint::<cogvideox::dit::Config>(dit, "in_channels", n)
    });
    edge("max_text_seq_length", 2048, |n| {
        complaint::<cogvideox::dit::Config>(dit, "max_text_seq_length", n)
    });
    let vae = "wan/wan-2.1-t2v/vae";
    edge("base_dim", 4096, |n| complaint::<wan::vae::Config>(vae, "base_dim", n));
    edge("z_dim must lie", 4096, |n| {
        complaint::<wan::vae::Config>(vae, "z_dim", n)
    });
    edge("num_res_blocks", 64, |n| {
        complaint::<wan::vae::Config>(vae, "num_res_blocks", n)
    });
    edge("dim_mult must lie", 64, |n| {
        complaint::<wan::vae::Config>(vae, "dim_mult", json!([n]))
    });
    let vae = "ltx_video/ltx-0.9.5/vae";
    edge("in_channels", 1 << 16, |n| {
        complaint::<ltx_video::vae::Config>(vae, "in_channels", n)
    });
    edge("patch_size", 64, |n| {
        complaint::<ltx_video::vae::Config>(vae, "patch_size", n)
    });
    edge("layers_per_block must lie", 1 << 10, |n| {
        complaint::<ltx_video::vae::Config>(vae, "layers_per_block", json!([n]))
    });
    let vae = "hunyuan_video/hunyuan-t2v/vae";
    edge("block_out_channels must lie", 4096, |n| {
        complaint::<hunyuan_video::vae::Config>(vae, "block_out_channels", json!([2, 2, 4, n]))
    });
    edge("layers_per_block must lie", 64, |n| {
        complaint::<hunyuan_video::vae::Config>(vae, "layers_per_block", n)
    });
    let vae = "mochi/vae";
    edge("latent_channels must lie", 4096, |n| {
        complaint::<mochi::vae::Config>(vae, "latent_channels", n)
    });
    edge("layers_per_block must lie", 64, |n| {
        complaint::<mochi::vae::Config>(vae, "layers_per_block", json!([n, 1, 1, 1, 1]))
    });
    edge("temporal_expansions must lie", 8, |n| {
        complaint::<mochi::vae::Config>(vae, "temporal_expansions", json!([1, n, 1]))
    });
    let vae = "allegro/allegro-t2v/vae";
    edge("latent_channels must lie", 4096, |n| {
        complaint::<allegro::vae::Config>(vae, "latent_channels", n)
    });
    edge("layers_per_block must lie", 64, |n| {
        complaint::<allegro::vae::Config>(vae, "layers_per_block", n)
    });
    edge("sample_size must lie", 1 << 14, |n| {
        complaint::<allegro::vae::Config>(vae, "sample_size", n)
    });
    edge("num_train_timesteps", 1_000_000, |n| {
        let schedule = json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": n});
        Schedule::parse(&schedule.to_string())
            .and_then(|read| read.check())
            .err()
            .map_or_else(String::new, |e| format!("{e:#}"))
    });
}

#[test]
fn lists_of_models_end_where_no_checkpoint_has_more() {
    let list = |entry: Value, count: Value| json!(vec![entry; count.as_u64().unwrap() as usize]);
    let vae = "cogvideox/cogvideox-2b/vae";
    edge("block_out_channels must have 1 to 16", 16, |n| {
        complaint::<cogvideox::vae::Config>(vae, "block_out_channels", list(json!(32), n))
    });
    let vae = "wan/wan-2.1-t2v/vae";
    edge("dim_mult must be 1 to 8", 8, |n| {
        complaint::<wan::vae::Config>(vae, "dim_mult", list(json!(1), n))
    });
    let vae = "hunyuan_video/hunyuan-t2v/vae";
    edge("block_out_channels must be 3 to 8", 8, |n| {
        complaint::<hunyuan_video::vae::Config>(vae, "block_out_channels", list(json!(2), n))
    });
    let vae = "mochi/vae";
    edge("encoder_block_out_channels must be 1 to 8", 8, |n| {
        complaint::<mochi::vae::Config>(vae, "encoder_block_out_channels", list(json!(32), n))
    });
    let vae = "allegro/allegro-t2v/vae";
    edge("block_out_channels must be 1 to 4", 4, |n| {
        complaint::<allegro::vae::Config>(vae, "block_out_channels", list(json!(2), n))
    });
    let vae = "ltx_video/ltx-0.9.5/vae";
    edge("down_block_types must have", 16, |n| {
        complaint::<ltx_video::vae::Config>(vae, "down_block_types", list(json!("LTXVideo095DownBlock3D"), n))
    });
}

#[test]
fn sizes_of_encoders_end_where_none_has_more() {
    let said = |result: anyhow::Result<()>| result.err().map_or_else(String::new, |error| format!("{error:#}"));
    let t5 = |key: &str, n: Value| said(t5::Config::parse(&json!({"model_type": "t5", key: n}).to_string()).map(drop));
    edge("d_model", 1 << 24, |n| t5("d_model", n));
    let buckets = |n: Value| {
        let even = n.as_u64().unwrap().next_multiple_of(2);
        t5("relative_attention_num_buckets", json!(even))
    };
    edge("relative_attention_num_buckets", 1 << 16, buckets);
    edge("hidden_size", 1 << 24, |n| {
        said(clip::Config::parse(&json!({"hidden_size": n, "num_attention_heads": 1}).to_string()).map(drop))
    });
    edge("size.shortest_edge", 4096, |n| {
        said(Preprocessor::parse(&json!({"size": {"shortest_edge": n}}).to_string()).map(drop))
    });
    let preprocessor =
        Preprocessor::parse(r#"{"size": {"shortest_edge": 4}, "crop_size": {"height": 4, "width": 4}}"#).unwrap();
    for (long, taken) in [(127, true), (128, false)] {
        let pixels = preprocessor.pixels(&vec![7; 2 * long * 3], (2, long), &Device::Cpu);
        assert_eq!(pixels.is_ok(), taken, "2x{long}");
    }
}

/// T5's sentinels stand behind the pieces of the model.
#[test]
fn as_many_sentinels_are_made_up_as_a_tokenizer_may_ask_for() {
    let spiece =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox/cogvideox-2b/tokenizer/spiece.model");
    let model = SentencePiece::open(&spiece).unwrap();
    edge("extra_ids are too many", 10_000, |n| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("tokenizer_config.json"),
            json!({"extra_ids": n}).to_string(),
        )
        .unwrap();
        let special = SpecialTokens::new(&SideFiles::read(folder.path()).unwrap(), &model);
        special.err().map_or_else(String::new, |error| format!("{error:#}"))
    });
}

/// ftfy looks for names of up to 24 letters: `&#?[0-9A-Za-z]{1,24};`.
#[test]
fn entities_are_unescaped_up_to_24_letters() {
    assert_eq!(clean::fix_text("&DoubleLongLeftRightArrow;"), "\u{27fa}");
    let long = "&CounterClockwiseContourIntegral;";
    assert_eq!(clean::fix_text(long), long);
}

#[test]
fn sizes_of_a_data_set_end_where_a_typing_error_is_likelier() {
    let problems = |config: data::Config| {
        let problems = Problems::of(|problems| problems.section("datasets[0]", |problems| config.check(problems)));
        problems
            .into_iter()
            .map(|(path, message)| format!("{path}: {message}\n"))
            .collect::<String>()
    };
    let named = || data::Config {
        path: "clips".into(),
        ..data::Config::default()
    };
    let number = |n: Value| n.as_u64().unwrap() as usize;
    edge("repeats", 10_000, |n| {
        problems(data::Config {
            repeats: number(n),
            ..named()
        })
    });
    let bucket = |frames, height, width| {
        problems(data::Config {
            buckets: vec![Bucket { frames, height, width }],
            ..named()
        })
    };
    edge("buckets[0]", 100_000, |n| bucket(number(n), 32, 48));
    edge("buckets[0]", 16_384, |n| bucket(9, number(n), 48));
    edge("buckets[0]", 16_384, |n| bucket(9, 32, number(n)));
}

/// The document itself is a node, and so are `x`, its list and the lists in it.
#[test]
fn run_files_nest_16_deep_and_hold_100_000_values() {
    let refused = |text: String| {
        let name = Path::new("run.yaml");
        RunConfig::parse(&text, name, Path::new("/"), &[])
            .err()
            .map_or_else(String::new, |error| error.to_string())
    };
    let unknown = "x: unknown key";
    for (depth, read) in [(15, true), (16, false)] {
        let said = refused(format!("x: {}{}", "[".repeat(depth), "]".repeat(depth)));
        assert_eq!(said.contains(unknown), read, "{depth}: {said}");
    }
    for (count, read) in [(100_000 - 3, true), (100_000 - 2, false)] {
        let said = refused(format!("x: [{}]", "1,".repeat(count)));
        assert_eq!(said.contains(unknown), read, "{count}: {said}");
    }
}
