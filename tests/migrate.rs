//! Other trainers' commands as run files. The scripts in `tests/fixtures/migrate` were written for these tests, in the
//! style of finetrainers' and musubi-tuner's own.

mod meaning;
mod shell;
mod windows;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use vtrain::config::RunConfig;
use vtrain::lora::TargetModules;
use vtrain::migrate::{Migrated, Source, finetrainers, musubi};

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn text(name: &str) -> String {
    std::fs::read_to_string(root().join("tests/fixtures/migrate").join(name)).unwrap()
}

fn source(name: &str, text: String) -> Source {
    Source {
        text,
        name: name.into(),
        folder: root()
            .join("tests/fixtures/migrate")
            .join(name)
            .parent()
            .map(Path::to_path_buf),
        from: root(),
        to: root(),
        variables: Vec::new(),
    }
}

fn migrated(name: &str) -> Migrated {
    finetrainers::migrate(&source(name, text(name))).unwrap()
}

/// The run file, as vtrain itself loads it.
fn loaded(migrated: &Migrated) -> Value {
    assert!(
        migrated.problems.is_empty(),
        "{:?}\n{}",
        migrated.problems,
        migrated.yaml
    );
    let config = RunConfig::parse(&migrated.yaml, Path::new("run.yaml"), &root(), &[]).unwrap();
    serde_json::to_value(config).unwrap()
}

fn at(config: &Value, path: &str) -> Value {
    let pointer = format!("/{}", path.replace('.', "/"));
    config.pointer(&pointer).unwrap_or_else(|| panic!("no {path}")).clone()
}

fn expect(config: &Value, wanted: &[(&str, Value)]) {
    for (path, value) in wanted {
        let found = at(config, path);
        let same = match (found.as_f64(), value.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => found == *value,
        };
        assert!(same, "{path}: {found}, not {value}");
    }
}

/// Every flag of the script is named in the run file: after the key that it became, or in a comment with the reason.
fn nothing_is_dropped(name: &str, migrated: &Migrated) {
    let code = text(name);
    let lines = code
        .lines()
        .map(|line| line.split(" #").next().unwrap())
        .filter(|line| {
            !["#", "rem ", "::", "$more", "<#"]
                .iter()
                .any(|start| line.trim().starts_with(start))
        });
    let mut flags = 0;
    for line in lines {
        for word in line.split(|c: char| c.is_whitespace() || "\"()=".contains(c)) {
            let elsewhere = name == "wan/train.sh" && word == "--gpu_ids"; // in the branch that is not taken
            if word.starts_with("--") && word.len() > 2 && !elsewhere {
                assert!(
                    migrated.yaml.contains(word),
                    "{name}: {word} is not in\n{}",
                    migrated.yaml
                );
                flags += 1;
            }
        }
    }
    assert!(flags > 5, "{name}: {flags} flags");
}

#[test]
fn the_articles_command_becomes_a_run_that_says_the_same() {
    let migrated = migrated("article.sh");
    let config = loaded(&migrated);
    let root = root();
    let below = |path: &str| json!(root.join(path));
    expect(
        &config,
        &[
            ("model.family", json!("cogvideox")),
            ("model.path", json!("THUDM/CogVideoX1.5-5B")),
            ("seed", json!(42)),
            ("output_dir", below("out/cartoons")),
            ("datasets.0.path", below("cartoons")),
            ("datasets.0.id_token", json!("BW_STYLE")),
            ("datasets.0.captions", json!("prompt.txt")),
            ("datasets.0.videos", json!("videos.txt")),
            ("lora.rank", json!(128)),
            ("lora.alpha", json!(128)),
            ("lora.target_modules", json!(["to_q", "to_k", "to_v", "to_out.0"])),
            ("train.steps", json!(1200)),
            ("train.batch_size", json!(1)),
            ("train.gradient_checkpointing", json!(true)),
            ("train.caption_dropout", json!(0.05)),
            ("train.max_grad_norm", json!(1.0)),
            ("optimizer.lr", json!(3e-5)),
            ("optimizer.beta2", json!(0.95)),
            ("lr_scheduler.name", json!("constant_with_warmup")),
            ("lr_scheduler.warmup_steps", json!(100)),
            ("checkpoint.every", json!(400)),
            ("checkpoint.limit", json!(2)),
            ("validation.every", json!(400)),
            (
                "validation.prompts.0.prompt",
                json!("BW_STYLE A duck plays the piano while two mice listen"),
            ),
            ("validation.prompts.0.num_frames", json!(49)),
            (
                "validation.prompts.1.prompt",
                json!("BW_STYLE A cat, drawn in ink, rows a boat over a still lake"),
            ),
            ("validation.prompts.1.width", json!(720)),
        ],
    );
    assert_eq!(
        at(&config, "datasets.0.buckets"),
        json!([[49, 480, 720], [81, 480, 720]])
    );
    assert_eq!(at(&config, "validation.prompts").as_array().unwrap().len(), 2);
    nothing_is_dropped("article.sh", &migrated);
    assert!(
        migrated.yaml.contains("rm -rf"),
        "the other commands are told of:\n{}",
        migrated.yaml
    );
}

#[test]
fn arrays_branches_and_json_files_of_todays_scripts_are_followed() {
    let migrated = migrated("wan/train.sh");
    let config = loaded(&migrated);
    let root = root();
    expect(
        &config,
        &[
            ("model.family", json!("wan")),
            ("seed", json!(7)),
            ("datasets.0.path", json!(root.join("data/melting"))),
            ("datasets.0.id_token", json!("MELT_FX")),
            ("datasets.0.remove_caption_prefixes", json!(true)),
            ("datasets.1.path", json!(root.join("data/more"))),
            ("lora.rank", json!(32)),
            ("lora.alpha", json!(16)),
            ("lora.target_modules", json!("blocks.*(to_q|to_k|to_v|to_out.0)")),
            ("train.batch_size", json!(2)),
            ("train.steps", json!(2500)),
            ("train.gradient_accumulation_steps", json!(3)),
            ("train.max_grad_norm", json!(0.5)),
            ("diffusion.timesteps", json!("logit_normal")),
            ("optimizer.beta2", json!(0.99)),
            ("validation.every", json!(250)),
            ("validation.prompts.0.steps", json!(40)),
            ("validation.prompts.0.guidance_scale", json!(5.5)),
            ("hub.push", json!(true)),
            ("hub.repo", json!("somebody/melting-things")),
        ],
    );
    assert_eq!(
        at(&config, "datasets.0.buckets"),
        json!([[49, 480, 832], [81, 480, 832]])
    );
    nothing_is_dropped("wan/train.sh", &migrated);
    for told in ["made_up_key", "WANDB_MODE", "--nproc_per_node"] {
        assert!(migrated.yaml.contains(told), "{told}:\n{}", migrated.yaml);
    }
}

#[test]
fn flags_without_a_counterpart_are_comments_that_say_why() {
    let migrated = migrated("ltx/train.sh");
    let config = loaded(&migrated);
    expect(
        &config,
        &[
            ("model.family", json!("ltx_video")),
            ("train.epochs", json!(3)),
            ("lora.target_modules", json!(["to_q", "to_k", "to_v", "to_out.0"])),
            ("diffusion.shift", json!("auto")),
            ("diffusion.timesteps", json!("mode")),
            ("diffusion.mode_scale", json!(1.1)),
            ("lr_scheduler.name", json!("cosine_with_restarts")),
            ("lr_scheduler.num_cycles", json!(2)),
            ("output_dir", json!("/out/rain")),
            ("optimizer.name", json!("adamw8bit")), // --use_8bit_bnb
        ],
    );
    nothing_is_dropped("ltx/train.sh", &migrated);
    let comment = |flag: &str| {
        let line = migrated.yaml.lines().find(|line| line.contains(flag)).unwrap();
        assert!(line.trim_start().starts_with('#'), "{line}");
    };
    comment("--not_a_flag 12");
}

#[test]
fn control_flags_compilation_loops_and_downloads_are_told_of() {
    let name = "wan/control.sh";
    let migrated = migrated(name);
    let config = loaded(&migrated);
    expect(
        &config,
        &[
            ("lora.rank", json!(64)),
            ("optimizer.lr", json!(2e-5)),
            ("tracking.tensorboard", json!(false)),
            ("output_dir", json!(root().join("out/control-2e-5"))),
        ],
    );
    nothing_is_dropped(name, &migrated);
    for told in [
        "huggingface-cli download",
        "text_encoder image_encoder transformer vae",
        "control-lora",
        "4e-5",
    ] {
        assert!(migrated.yaml.contains(told), "{told}:\n{}", migrated.yaml);
    }
}

#[test]
fn a_run_of_finetrainers_on_hunyuan_video_becomes_one() {
    let migrated = migrated("hunyuan/train.sh");
    expect(
        &loaded(&migrated),
        &[
            ("model.family", json!("hunyuan_video")),
            ("model.path", json!("hunyuanvideo-community/HunyuanVideo")),
            ("lora.rank", json!(16)),
            (
                "lora.target_modules",
                json!("(transformer_blocks|single_transformer_blocks).*(to_q|to_k|to_v|to_out.0)"),
            ),
            ("train.guidance_embedding", json!(1.0)),
        ],
    );
    nothing_is_dropped("hunyuan/train.sh", &migrated);
}

#[test]
fn a_family_that_vtrain_does_not_have_is_told() {
    let name = "hunyuan/train.sh";
    let other = text(name).replace("--model_name hunyuan_video", "--model_name cogview4");
    let migrated = finetrainers::migrate(&source(name, other)).unwrap();
    loaded(&migrated);
    let line = migrated
        .yaml
        .lines()
        .find(|line| line.contains("--model_name cogview4"))
        .unwrap();
    assert!(line.starts_with('#'), "{line}");
    nothing_is_dropped(name, &migrated);
}

#[test]
fn musubi_tuners_script_for_hunyuan_video_becomes_a_run() {
    let name = "musubi/hunyuan.sh";
    let migrated = musubi::migrate(&source(name, text(name)), None).unwrap();
    let config = loaded(&migrated);
    expect(
        &config,
        &[
            ("model.family", json!("hunyuan_video")),
            ("model.path", json!("hunyuanvideo-community/HunyuanVideo")),
            ("train.guidance_embedding", json!(1.5)),
            ("train.steps", json!(800)),
            ("diffusion.timesteps", json!("logit_normal")),
            ("diffusion.shift", json!(7.0)),
            ("lora.rank", json!(32)),
            ("lora.alpha", json!(16)),
            ("validation.prompts.0.guidance_scale", json!(6.0)),
            ("validation.prompts.1.guidance_scale", json!(7.5)),
            ("validation.prompts.1.true_cfg_scale", json!(2.0)),
            ("validation.prompts.1.negative_prompt", json!("blurry")),
        ],
    );
    nothing_is_dropped(name, &migrated);
    for told in [
        "model.transformer",
        "model.quantization",
        "model.offload: group",
        "1000 times",
    ] {
        assert!(migrated.yaml.contains(told), "{told}:\n{}", migrated.yaml);
    }
    // The linear layers of the two kinds of blocks, but for modulation; not the text's refiner.
    let pattern = at(&config, "lora.target_modules");
    let pattern = TargetModules::Regex(pattern.as_str().unwrap().into());
    let matches = pattern.matcher().unwrap();
    for (layer, taken) in [
        ("transformer_blocks.0.attn.to_q", true),
        ("transformer_blocks.19.attn.add_v_proj", true),
        ("transformer_blocks.3.attn.to_add_out", true),
        ("transformer_blocks.3.ff.net.0.proj", true),
        ("transformer_blocks.3.ff_context.net.2", true),
        ("single_transformer_blocks.39.attn.to_k", true),
        ("single_transformer_blocks.3.proj_mlp", true),
        ("single_transformer_blocks.3.proj_out", true),
        ("transformer_blocks.3.norm1.linear", false),
        ("transformer_blocks.3.norm1_context.linear", false),
        ("single_transformer_blocks.3.norm.linear", false),
        ("context_embedder.token_refiner.refiner_blocks.0.attn.to_q", false),
        ("norm_out.linear", false),
        ("proj_out", false),
    ] {
        assert_eq!(matches.matches(layer).unwrap(), taken, "{layer}");
    }
}

#[test]
fn a_data_set_of_musubi_tuner_and_its_command_become_a_run() {
    let name = "musubi/train.sh";
    let migrated = musubi::migrate(&source(name, text(name)), None).unwrap();
    nothing_is_dropped(name, &migrated);
    // The single-file checkpoint has to become a diffusers directory, which only its owner can do.
    let set = migrated.yaml.clone() + "\nmodel: {path: Wan-AI/Wan2.1-T2V-1.3B-Diffusers}\n";
    let text = if migrated.problems.is_empty() {
        migrated.yaml.clone()
    } else {
        set
    };
    let config = RunConfig::parse(&text, Path::new("run.yaml"), &root(), &[]);
    let config = serde_json::to_value(config.unwrap_or_else(|e| panic!("{e}\n{text}"))).unwrap();
    expect(
        &config,
        &[
            ("lora.rank", json!(32)),
            ("lora.alpha", json!(16)),
            ("optimizer.lr", json!(2e-4)),
            ("train.epochs", json!(16)),
            ("train.activation_policy", json!("offloaded")),
            ("seed", json!(42)),
            ("datasets.0.path", json!(root().join("data/melting"))),
            ("datasets.0.repeats", json!(4)),
        ],
    );
    for told in ["frame_extraction", "cache_directory", "bucket_no_upscale"] {
        assert!(migrated.yaml.contains(told), "{told}:\n{}", migrated.yaml);
    }
}

fn vtrain(args: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vtrain"))
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn a_script_is_read_and_never_run() {
    let folder = tempfile::tempdir().unwrap();
    let script = "touch ran-1; X=$(touch ran-2) Y=`touch ran-3`\neval 'touch ran-4'\n\
                  python train.py --model_name wan --pretrained_model_name_or_path a/b --data_root data --tracker_name $(touch ran-5)\n";
    std::fs::write(folder.path().join("train.sh"), script).unwrap();
    let output = vtrain(
        &["migrate", "finetrainers", "train.sh", "--output", "run.yaml"],
        folder.path(),
    );
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let names: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let yaml = std::fs::read_to_string(folder.path().join("run.yaml")).unwrap();
    assert!(yaml.contains("touch ran-5") && yaml.contains("touch ran-1"), "{yaml}");
}

#[test]
fn each_option_of_migrate_reaches_the_run_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let script =
        "python train.py --model_name wan --pretrained_model_name_or_path a/b --data_root clips --rank $RANK\n";
    write("scripts/train.sh", script);
    let ran = |args: &str| {
        let output = vtrain(&args.split(' ').collect::<Vec<_>>(), folder.path());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{args}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let of_finetrainers = ran("migrate finetrainers scripts/train.sh --var RANK=48 --from elsewhere");
    assert!(of_finetrainers.contains("rank: 48"), "{of_finetrainers}");
    assert!(of_finetrainers.contains("elsewhere/clips"), "{of_finetrainers}");
    assert_eq!(
        ran("migrate finetrainers scripts/train.sh --var RANK=48 --output run.yaml"),
        ""
    );
    let written = std::fs::read_to_string(folder.path().join("run.yaml")).unwrap();
    assert!(
        written.contains("rank: 48") && !written.contains("elsewhere"),
        "{written}"
    );

    let script =
        "accelerate launch wan_train_network.py --task t2v-1.3B --dataset_config own.toml --network_dim $RANK\n";
    write("scripts/musubi.sh", script);
    let set = |of: &str| {
        format!("[general]\nresolution = [96, 64]\n[[datasets]]\nvideo_directory = \"{of}\"\ntarget_frames = [17]\n")
    };
    for (name, clips) in [
        ("own.toml", "own"),
        ("elsewhere/own.toml", "far"),
        ("other.toml", "other"),
    ] {
        write(name, &set(clips));
    }
    let of_musubi = ran("migrate musubi scripts/musubi.sh --var RANK=24");
    assert!(
        of_musubi.contains("rank: 24") && of_musubi.contains("path: \"own\""),
        "{of_musubi}"
    );
    let from = ran("migrate musubi scripts/musubi.sh --var RANK=24 --from elsewhere");
    assert!(from.contains("far"), "{from}");
    let other = ran("migrate musubi scripts/musubi.sh --var RANK=24 --dataset-config other.toml");
    assert!(other.contains("path: \"other\""), "{other}");
    ran("migrate musubi scripts/musubi.sh --var RANK=24 --output run.yaml");
    assert!(
        std::fs::read_to_string(folder.path().join("run.yaml"))
            .unwrap()
            .contains("rank: 24")
    );
}

#[test]
fn tokens_are_not_written_into_the_run_file() {
    let script = "huggingface-cli login --token hf_one\nwandb login two_two\nhf download set --token=hf_three --local-dir clips\n\
                  python train.py --model_name wan --pretrained_model_name_or_path a/b --data_root data \
                  --hub_token hf_four --tokenizer_id my/words --id_token WORD --id_token STYLE\n";
    let yaml = finetrainers::migrate(&source("train.sh", script.into())).unwrap().yaml;
    for secret in ["hf_one", "two_two", "hf_three", "hf_four"] {
        assert!(!yaml.contains(secret), "{secret}:\n{yaml}");
    }
    for open in [
        "--local-dir clips",
        "--tokenizer_id my/words",
        "--id_token WORD",
        "\"STYLE\"",
    ] {
        assert!(yaml.contains(open), "{open}:\n{yaml}");
    }
}

#[test]
fn values_that_are_none_are_told_all_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let script = "python train.py --model_name wan --rank many --lr fast --data_root d\n";
    std::fs::write(folder.path().join("train.sh"), script).unwrap();
    let output = vtrain(&["migrate", "finetrainers", "train.sh"], folder.path());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("--rank") && said.contains("many") && said.contains("--lr") && said.contains("fast"),
        "{said}"
    );

    std::fs::write(folder.path().join("train.sh"), "echo hello\n").unwrap();
    let output = vtrain(&["migrate", "finetrainers", "train.sh"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    let output = vtrain(&["migrate", "musubi", "gone.sh"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("gone.sh"));
}
