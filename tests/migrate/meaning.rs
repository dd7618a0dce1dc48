//! Run files that load, and mean what the script meant.

use serde_json::json;

use super::*;

/// A musubi-tuner run of 500 steps with these flags, on a data set of these lines.
fn musubi_with(flags: &str, set: &str) -> Result<Migrated, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    let data = format!("[[datasets]]\nresolution = [96, 64]\nvideo_directory = \"set\"\n{set}\n");
    std::fs::write(folder.path().join("d.toml"), data).unwrap();
    let script = format!(
        "accelerate launch wan_train_network.py --task t2v-1.3B --dataset_config {} --network_dim 4 \
         --output_dir out --output_name x {flags}\n",
        folder.path().join("d.toml").display()
    );
    musubi::migrate(&source("train.sh", script), None)
}

fn config(flags: &str) -> Value {
    loaded(&musubi_with(flags, "").unwrap_or_else(|e| panic!("{flags}: {e:?}")))
}

/// A finetrainers run with these flags.
fn finetrainers_with(flags: &str) -> Result<Migrated, Vec<String>> {
    let script = format!(
        "accelerate launch train.py --model_name wan --pretrained_model_name_or_path Wan-AI/Wan2.1-T2V-1.3B-Diffusers \
         --data_root data --video_resolution_buckets 49x480x832 {flags}\n"
    );
    finetrainers::migrate(&source("train.sh", script))
}

fn refusal(migrated: Result<Migrated, Vec<String>>) -> String {
    migrated.map(|migrated| migrated.yaml).unwrap_err().join("\n")
}

#[test]
fn clipping_that_is_switched_off_stays_off() {
    for off in ["0", "0.0", "inf"] {
        let config = config(&format!("--max_grad_norm {off}"));
        assert_eq!(at(&config, "train.max_grad_norm"), Value::Null, "{off}");
    }
    expect(&config("--max_grad_norm 0.5"), &[("train.max_grad_norm", json!(0.5))]);
    expect(&config(""), &[("train.max_grad_norm", json!(1.0))]);
    for wrong in ["-1", "nan", "none"] {
        let said = refusal(musubi_with(&format!("--max_grad_norm {wrong}"), ""));
        assert!(said.contains("--max_grad_norm") && said.contains(wrong), "{said}");
    }
    // torch's clip_grad_norm_ makes gradients of norm 0 there, of which nothing is learnt.
    let said = refusal(finetrainers_with("--max_grad_norm 0"));
    assert!(said.contains("--max_grad_norm: 0"), "{said}");
    let config = loaded(&finetrainers_with("--max_grad_norm inf").unwrap());
    assert_eq!(at(&config, "train.max_grad_norm"), Value::Null);
}

#[test]
fn frames_are_those_that_musubi_tuner_trains_on() {
    let buckets = |set: &str| {
        at(
            &loaded(&musubi_with("", set).unwrap_or_else(|e| panic!("{set}: {e:?}"))),
            "datasets.0.buckets",
        )
    };
    // (f - 1) // 4 * 4 + 1, as sorted sets
    assert_eq!(
        buckets("target_frames = [1, 20, 48]"),
        json!([[1, 64, 96], [17, 64, 96], [45, 64, 96]])
    );
    assert_eq!(buckets("target_frames = [19, 17, 20]"), json!([[17, 64, 96]]));
    assert_eq!(buckets("target_frames = 4"), json!([[1, 64, 96]]));
    // Not read but with "full".
    assert_eq!(buckets("max_frames = 33"), json!([[1, 64, 96]]));
    let full = "frame_extraction = \"full\"\n";
    assert_eq!(
        buckets(&format!("{full}max_frames = 10\ntarget_frames = [5]")),
        json!([[1, 64, 96], [5, 64, 96], [9, 64, 96]])
    );
    let all = buckets(full);
    assert_eq!((all.as_array().unwrap().len(), &all[32]), (33, &json!([129, 64, 96])));
    for set in [
        "target_frames = [0]",
        "target_frames = []",
        "target_frames = [-3]",
        "target_frames = \"20\"",
        &format!("{full}max_frames = 0"),
    ] {
        let said = refusal(musubi_with("", set));
        assert!(said.contains("_frames: expected"), "{set}: {said}");
    }
    let frames = |set: &str| at(&loaded(&musubi_with("", set).unwrap()), "datasets.0.frames");
    let uniform = "target_frames = [17]\nframe_extraction = \"uniform\"";
    assert_eq!(frames(uniform), json!("head"), "one sample is the first");
    assert_eq!(frames(&format!("{uniform}\nframe_sample = 4")), json!("random"));
}

#[test]
fn sampled_videos_have_the_sizes_that_musubi_tuner_makes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompts.txt");
    std::fs::write(&file, "a ball --f 24 --w 500 --h 320 --d 0\n").unwrap();
    let migrated = musubi_with(&format!("--sample_prompts {}", file.display()), "").unwrap();
    let config = loaded(&migrated);
    expect(
        &config,
        &[
            ("validation.prompts.0.num_frames", json!(21)),
            ("validation.prompts.0.width", json!(496)),
            ("validation.prompts.0.height", json!(320)),
            ("validation.prompts.0.seed", json!(0)),
        ],
    );
    assert!(migrated.yaml.contains("--f 24"), "{}", migrated.yaml);
    std::fs::write(&file, "a ball --f 0\n").unwrap();
    let said = refusal(musubi_with(&format!("--sample_prompts {}", file.display()), ""));
    assert!(said.contains("--f: expected a number"), "{said}");
}

#[test]
fn a_warm_up_is_as_long_as_it_was() {
    let warmup = |flags: &str| {
        let config = config(&format!("--lr_scheduler cosine {flags}"));
        let at = |key: &str| {
            config
                .pointer(&format!("/lr_scheduler/{key}"))
                .cloned()
                .unwrap_or_default()
        };
        (at("warmup_steps"), at("warmup_ratio"))
    };
    let steps = |n: u64| (json!(n), Value::Null);
    assert_eq!(warmup("--max_train_steps 500 --lr_warmup_steps 0.1"), steps(50));
    assert_eq!(warmup("--max_train_steps 505 --lr_warmup_steps 10%"), steps(50));
    assert_eq!(
        warmup("--lr_warmup_steps 0.1"),
        steps(160),
        "of musubi-tuner's own 1600"
    );
    assert_eq!(warmup("--lr_warmup_steps 1"), steps(1));
    assert_eq!(warmup(""), steps(0));
    // How many steps 4 epochs take, the data set tells when the run starts.
    assert_eq!(warmup("--max_train_epochs 4 --lr_warmup_steps 0.1").1, json!(0.1));
    for wrong in ["-1", "1.5", "ten", "110%"] {
        let said = refusal(musubi_with(
            &format!("--lr_scheduler cosine --lr_warmup_steps {wrong}"),
            "",
        ));
        assert!(said.contains("--lr_warmup_steps"), "{said}");
    }
    let said = refusal(musubi_with("--lr_scheduler constant --lr_warmup_steps 10", ""));
    assert!(said.contains("constant_with_warmup"), "{said}");
}

#[test]
fn optimisers_and_schedules_that_vtrain_lacks_are_refused() {
    for name in [
        "prodigy",
        "adafactor",
        "lion8bit",
        "torch.optim.SGD",
        "prodigyplus.ProdigyPlusScheduleFree",
        "AdamWScheduleFree",
        "came",
    ] {
        let said = refusal(musubi_with(&format!("--optimizer_type {name} --learning_rate 1"), ""));
        assert!(said.contains(&format!("--optimizer_type {name}")), "{said}");
        let said = refusal(finetrainers_with(&format!("--optimizer {name} --lr 1")));
        assert!(said.contains(&format!("--optimizer {name}")), "{said}");
    }
    for (name, ours) in [
        ("AdamW", "adamw"),
        ("AdamW8bit", "adamw8bit"),
        ("bitsandbytes.optim.PagedAdamW8bit", "adamw8bit"),
        ("torch.optim.AdamW", "adamw"),
    ] {
        expect(
            &config(&format!("--optimizer_type {name}")),
            &[("optimizer.name", json!(ours))],
        );
    }
    for (name, ours) in [
        ("adamw", "adamw"),
        ("adamw-bnb-8bit", "adamw8bit"),
        ("adam", "adamw"),
        ("adam --use_8bit_bnb", "adamw8bit"),
    ] {
        let config = loaded(&finetrainers_with(&format!("--optimizer {name}")).unwrap());
        expect(&config, &[("optimizer.name", json!(ours))]);
    }
    for flags in [
        "--lr_scheduler rex",
        "--lr_scheduler cosine_with_min_lr",
        "--lr_scheduler_type x.Y",
        "--lr_scheduler_args a=1",
    ] {
        let said = refusal(musubi_with(flags, ""));
        assert!(said.contains(flags.split(' ').next().unwrap()), "{said}");
    }
}

#[test]
fn a_file_of_flags_is_read_and_the_commands_own_go_before_it() {
    let script = |more: &str| {
        let text = format!("python -m musubi_tuner.wan_train_network --config_file {more}\n");
        musubi::migrate(&source("musubi/x.sh", text), None)
    };
    for file in ["flags.toml", "flags"] {
        let migrated = script(&format!(
            "tests/fixtures/migrate/musubi/{file} --output_dir out --network_dim 8"
        ))
        .unwrap();
        expect(
            &loaded(&migrated),
            &[
                ("lora.rank", json!(8)),
                ("lora.alpha", json!(16)),
                ("train.steps", json!(400)),
                ("lr_scheduler.name", json!("cosine")),
                ("lr_scheduler.warmup_steps", json!(100)),
                ("train.gradient_checkpointing", json!(true)),
                ("optimizer.weight_decay", json!(0.1)),
                ("optimizer.beta2", json!(0.99)),
                ("datasets.0.repeats", json!(4)),
            ],
        );
        assert!(migrated.yaml.contains("--config_file"), "{}", migrated.yaml);
        assert!(
            !migrated.yaml.contains("--sdpa"),
            "a switch that is off:\n{}",
            migrated.yaml
        );
    }
    let said = refusal(script("gone"));
    assert!(said.contains("gone.toml"), "{said}");
}

#[test]
fn the_script_for_mochi_becomes_a_run() {
    let name = "mochi/train.sh";
    let migrated = migrated(name);
    nothing_is_dropped(name, &migrated);
    expect(
        &loaded(&migrated),
        &[
            ("model.family", json!("mochi")),
            ("model.path", json!("genmo/mochi-1-preview")),
            ("model.dtype", json!("bf16")),
            ("seed", json!(42)),
            ("output_dir", json!(root().join("out/mochi"))),
            ("datasets.0.path", json!(root().join("clips/prepared"))),
            ("datasets.0.buckets", json!([[37, 480, 848]])),
            ("precompute.vae_tiling", json!(true)),
            ("lora.rank", json!(16)),
            ("lora.alpha", json!(16)),
            ("lora.target_modules", json!(["to_k", "to_q", "to_v", "to_out.0"])),
            ("train.steps", json!(1500)),
            ("train.batch_size", json!(2)),
            ("train.caption_dropout", json!(0.1)),
            ("train.max_grad_norm", json!(null)),
            ("diffusion.timesteps", json!("uniform")),
            ("optimizer.name", json!("adamw")),
            ("optimizer.lr", json!(1e-4)),
            ("optimizer.beta2", json!(0.999)),
            ("optimizer.weight_decay", json!(0.01)),
            ("lr_scheduler.name", json!("cosine")),
            ("lr_scheduler.warmup_steps", json!(40)),
            ("validation.prompts.0.prompt", json!("a crab on a rock")),
            ("validation.prompts.1.prompt", json!("a fox in snow")),
            ("validation.prompts.1.num_frames", json!(19)),
            ("validation.prompts.1.height", json!(320)),
            ("validation.prompts.1.width", json!(848)),
            ("validation.prompts.1.steps", json!(64)),
            ("validation.prompts.1.guidance_scale", json!(6.0)),
        ],
    );
    for said in [
        "the script trains with AdamW whatever this says",
        "vtrain encodes the clips and captions there itself",
        "those of validation have 30 frames a second, here too",
    ] {
        assert!(migrated.yaml.contains(said), "{said} is not in\n{}", migrated.yaml);
    }
    // Without the flags, the script's own settings.
    let script = "python text_to_video_lora.py --pretrained_model_name_or_path m --data_root d\n";
    let bare = finetrainers::migrate(&source("bare.sh", script.into())).unwrap();
    expect(
        &loaded(&bare),
        &[
            ("model.dtype", json!("f32")),
            ("output_dir", json!(root().join("mochi-lora"))),
            ("train.epochs", json!(1)),
            ("train.batch_size", json!(4)),
            ("optimizer.lr", json!(2e-4)),
            ("lr_scheduler.warmup_steps", json!(200)),
        ],
    );
}

#[test]
fn diffusers_own_script_becomes_a_run() {
    let name = "diffusers/train.sh";
    let migrated = finetrainers::migrate(&source(name, text(name))).unwrap();
    let config = loaded(&migrated);
    nothing_is_dropped(name, &migrated);
    expect(
        &config,
        &[
            ("model.family", json!("cogvideox")),
            ("model.path", json!("THUDM/CogVideoX-2b")),
            ("output_dir", json!(root().join("out/steam"))),
            ("datasets.0.path", json!(root().join("data/trains"))),
            ("datasets.0.captions", json!("prompts.txt")),
            ("datasets.0.videos", json!("videos.txt")),
            ("datasets.0.id_token", json!("STEAM")),
            ("datasets.0.buckets", json!([[49, 432, 720]])),
            ("lora.rank", json!(32)),
            ("lora.alpha", json!(16)),
            ("lora.target_modules", json!(["to_k", "to_q", "to_v", "to_out.0"])),
            ("train.epochs", json!(30)),
            ("train.batch_size", json!(2)),
            ("train.gradient_accumulation_steps", json!(3)),
            ("train.max_grad_norm", json!(0.5)),
            ("optimizer.lr", json!(1e-3)),
            ("optimizer.beta2", json!(0.99)),
            ("optimizer.weight_decay", json!(0.02)),
            ("lr_scheduler.name", json!("cosine_with_restarts")),
            ("lr_scheduler.warmup_steps", json!(200)),
            ("checkpoint.limit", json!(4)),
            ("validation.prompts.1.prompt", json!("STEAM a ship")),
            ("validation.prompts.1.guidance_scale", json!(6.5)),
            ("validation.prompts.1.height", json!(432)),
        ],
    );
    assert!(migrated.yaml.contains("# --learning_rate"), "{}", migrated.yaml);
}

#[test]
fn scripts_that_finetrainers_grew_from_are_read_or_refused_by_name() {
    let common = "--pretrained_model_name_or_path THUDM/CogVideoX-5b-I2V";
    let migrate = |command: &str| finetrainers::migrate(&source("t.sh", format!("accelerate launch {command}\n")));
    // Each script's own defaults.
    let defaults = [
        (
            "examples/cogvideo/train_cogvideox_image_to_video_lora.py --instance_data_root d",
            128,
            "cogvideox-lora",
        ),
        (
            "training/cogvideox_image_to_video_lora.py --data_root d",
            64,
            "cogvideox-sft",
        ),
    ];
    for (script, rank, output) in defaults {
        let config = loaded(&migrate(&format!("{script} {common} --random_flip")).unwrap());
        expect(
            &config,
            &[
                ("lora.rank", json!(rank)),
                ("lora.alpha", json!(rank)),
                ("train.batch_size", json!(4)),
                ("train.epochs", json!(1)),
                ("output_dir", json!(root().join(output))),
                ("datasets.0.captions", json!("text")),
                ("datasets.0.buckets", json!([[49, 480, 720]])),
            ],
        );
    }
    let lists = "--data_root d --frame_buckets 33 49 --height_buckets 480 --width_buckets 480 720";
    let config = loaded(&migrate(&format!("cogvideox_text_to_video_lora.py {common} {lists}")).unwrap());
    assert_eq!(
        at(&config, "datasets.0.buckets"),
        json!([[33, 480, 480], [33, 480, 720], [49, 480, 480], [49, 480, 720]])
    );
    for (command, named) in [
        (
            "training/cogvideox_text_to_video_sft.py --data_root d",
            "cogvideox_text_to_video_sft.py",
        ),
        (
            "finetune/train.py --model_path a/b --train_resolution 81x768x1360",
            "--train_resolution",
        ),
        (
            "examples/dreambooth/train_dreambooth_lora.py --rank 4",
            "train_dreambooth_lora.py",
        ),
        (
            "train_cogvideox_lora.py --optimizer prodigy --instance_data_root d",
            "--optimizer prodigy",
        ),
    ] {
        let said = refusal(migrate(&format!("{command} {common}")));
        assert!(said.contains(named), "{said}");
    }
    // The other trainer's command names what it found, too.
    let said = refusal(musubi::migrate(
        &source("t.sh", "python train_cogvideox_lora.py\n".into()),
        None,
    ));
    assert!(said.contains("it runs train_cogvideox_lora.py"), "{said}");
}

#[test]
fn tiles_of_the_autoencoder_are_those_of_the_script() {
    let tiling = |config: Value| at(&config, "precompute.vae_tiling");
    assert_eq!(tiling(config("--vae_tiling")), json!(true));
    assert_eq!(tiling(config("--vae_spatial_tile_sample_min_size 128")), json!(true));
    assert_eq!(tiling(config("")), json!("auto"));
    let remarks = musubi_with("--vae_spatial_tile_sample_min_size 128", "").unwrap();
    assert!(format!("{remarks:?}").contains("tiles have the size that diffusers gives the family"));
    let of_finetrainers = |flags| tiling(loaded(&finetrainers_with(flags).unwrap()));
    assert_eq!(of_finetrainers("--enable_tiling"), json!(true));
    assert_eq!(of_finetrainers(""), json!(false));
}
