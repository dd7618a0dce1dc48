//! Settings that the model, the files or the machine do not support, by key.

use std::fs;

use super::{Run, fixtures, ltx, prompts};

#[test]
fn what_is_well_passes_a_dry_run_and_leaves_only_the_resolved_settings() {
    let prompts = prompts(&[&[]]);
    for model in ["ltx_video/ltx-0.9.5", "wan/wan-2.1-t2v", "cogvideox/cogvideox-5b"] {
        let run = Run::new(&fixtures(model), "");
        let output = run.vtrain("train", &["--dry-run"], &[&prompts]);
        assert_eq!(output.status.code(), Some(0), "{model}: {}", super::stderr(&output));
        let left: Vec<_> = fs::read_dir(run.path("out"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["config.yaml"], "{model}");
        assert!(!run.path("cache").exists());
    }
}

/// Each alone, with what is said of it.
#[test]
fn a_setting_that_cannot_be_fulfilled_stops_a_dry_run_and_a_run_alike() {
    let run = Run::new(&ltx(), "");
    let wan_lora = fixtures("wan/lora/pytorch_lora_weights.safetensors");
    let wan_lora = format!("lora.init={}", wan_lora.display());
    let ltx_lora = format!("lora.init={}", fixtures("training/ltx-init.safetensors").display());
    fs::write(run.path("text.png"), "no picture").unwrap();
    fs::write(run.path("file"), "no folder").unwrap();
    let usage: &[(&[&str], &str)] = &[
        (
            &["lora.target_modules=[to_q, q, k]"],
            "lora.target_modules: no layer matches 'q', 'k'; the model's linear layers",
        ),
        (
            &["lora.target_modules=to_q"],
            "lora.target_modules: no layer matches 'to_q'",
        ),
        (
            &["lora.target_modules='.*nowhere.*'"],
            "lora.target_modules: no layer matches '.*nowhere.*'",
        ),
        (&["lora.init=nowhere.safetensors"], "nowhere.safetensors: No such file"),
        (&["lora.init=text.png"], "text.png: not a readable safetensors file"),
        (&[&wan_lora], "belong to layers that this run does not train"),
        (&[&ltx_lora, "lora.rank=8"], "has rank 4, but lora.rank is 8"),
        (&[&ltx_lora, "lora.alpha=1"], "but lora.alpha is 1"),
        (&[&ltx_lora, "lora.use_rslora=true"], "but lora.use_rslora is true"),
        (
            &["datasets.0.buckets=[[16, 64, 96]]"],
            "datasets[0].buckets[0]: 16 frames must be a multiple of 8 and one more; the nearest is 17",
        ),
        (
            &["datasets.0.buckets=[[17, 64, 96], [17, 60, 96]]"],
            "datasets[0].buckets[1]: 60x96 (height x width) must be multiples of 32",
        ),
        (&["model.family=wan"], "model.family is"),
        (
            &["hub.push=true", "hub.repo=somebody/style"],
            "hub.push: there is no token",
        ),
        (&["device=cuda:0"], "device: cuda:0 cannot be used"),
    ];
    for (sets, said) in usage {
        // What is wrong with the device or the model's family is no other exit code than before.
        let code = if sets[0] == "model.family=wan" { 4 } else { 2 };
        let found = run.refused(code, sets);
        assert!(found.contains(said), "{sets:?}: {found}");
    }
    for (key, value, said) in [
        (
            "width",
            "90",
            "validation.prompts[0]: 64x90 (height x width) must be multiples of 32; the nearest is 64x96",
        ),
        (
            "num_frames",
            "10",
            "validation.prompts[0]: 10 frames must be a multiple of 8",
        ),
        (
            "steps",
            "5000",
            "validation.prompts[0].steps: the number of steps must be within 1 and 1000",
        ),
        (
            "fps",
            "5000",
            "validation.prompts[0]: its video cannot be encoded: 5000 frames a second",
        ),
        ("image", "nowhere.png", "validation.prompts[0].image: "),
        ("image", "text.png", "validation.prompts[0].image: "),
    ] {
        let found = run.refused(2, &[&prompts(&[&[(key, value)]])]);
        assert!(found.contains(said), "{key}: {value}: {found}");
    }
    let found = run.refused(5, &["precompute.dir=file/below"]);
    assert!(
        found.contains("precompute.dir: ") && found.contains("file: cannot be written"),
        "{found}"
    );
}

/// Settings that only one kind of checkpoint supports.
#[test]
fn an_image_for_a_model_of_text_alone_is_refused_and_so_is_a_model_from_images_without_one() {
    let picture = fixtures("video/still.png");
    let with = prompts(&[&[("image", picture.to_str().unwrap())]]);
    let without = prompts(&[&[]]);
    for (model, prompt, said) in [
        (
            "wan/wan-2.1-t2v",
            &with,
            "validation.prompts[0].image: this checkpoint makes clips from text alone",
        ),
        (
            "wan/wan-2.1-i2v",
            &without,
            "validation.prompts[0].image: this checkpoint starts from an image; give it one",
        ),
        (
            "cogvideox/cogvideox-5b",
            &with,
            "validation.prompts[0].image: this checkpoint makes clips from text alone",
        ),
    ] {
        let found = Run::new(&fixtures(model), "").refused(2, &[prompt]);
        assert!(found.contains(said), "{model}: {found}");
    }
    for (model, prompt) in [
        ("wan/wan-2.1-i2v", &with),
        ("ltx_video/ltx-0.9.5", &with),
        ("ltx_video/ltx-0.9.5", &without),
    ] {
        let output = Run::new(&fixtures(model), "").vtrain("train", &["--dry-run"], &[prompt]);
        assert_eq!(output.status.code(), Some(0), "{model}: {}", super::stderr(&output));
    }
    for (model, set, said) in [
        (
            "wan/wan-2.1-t2v",
            "train.first_frame_conditioning_p=0.5",
            "train.first_frame_conditioning_p: 0.5: this checkpoint cannot start from an image",
        ),
        (
            "wan/wan-2.1-i2v",
            "train.first_frame_conditioning_p=0.5",
            "train.first_frame_conditioning_p: 0.5: this checkpoint always starts from an image",
        ),
        (
            "cogvideox/cogvideox-5b",
            "diffusion.shift=3",
            "diffusion.shift: this checkpoint draws all timesteps",
        ),
    ] {
        let found = Run::new(&fixtures(model), "").refused(2, &[set]);
        assert!(found.contains(said), "{model}: {found}");
    }
}

#[test]
fn a_size_beyond_the_positions_of_a_model_is_refused() {
    let run = Run::of_copy(&fixtures("wan/wan-2.1-t2v"), "");
    let config = run.path("model/transformer/config.json");
    let mut keys: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    keys["rope_max_seq_len"] = 5.into();
    fs::write(&config, keys.to_string()).unwrap();
    let found = run.refused(2, &[&prompts(&[&[]])]);
    for key in ["datasets[0].buckets[0]: ", "validation.prompts[0]: "] {
        assert!(
            found.contains(key) && found.contains("that this model has positions for"),
            "{found}"
        );
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_once_each_once() {
    let run = Run::of_copy(&ltx(), "");
    fs::remove_file(run.path("model/vae/diffusion_pytorch_model.safetensors")).unwrap();
    fs::remove_file(run.path("model/tokenizer/spiece.model")).unwrap();
    fs::write(run.path("data/b.y4m"), "no clip").unwrap();
    fs::write(run.path("data/b.txt"), "b").unwrap();
    let prompts = prompts(&[&[("fps", "5000")], &[("image", "nowhere.png")]]);
    let sets = [
        "lora.target_modules=[to_q, q]",
        "lora.init=nowhere.safetensors",
        "datasets.0.buckets=[[17, 64, 96], [16, 64, 90]]",
        &prompts,
        "hub.push=true",
        "hub.repo=somebody/style",
        "device=cuda:3",
    ];
    let found = run.refused(3, &sets);
    for said in [
        "data/b.y4m",
        "one thing refused",
        "lora.init: ",
        "datasets[0].buckets[1]: 64x90",
        "16 frames must be a multiple of 8",
        "validation.prompts[0]: its video cannot be encoded",
        "validation.prompts[1].image: ",
        "hub.push: ",
        "device: cuda:3",
        "model/vae: no safetensors file",
        "model/tokenizer: no tokenizer.json",
    ] {
        assert_eq!(found.matches(said).count(), 1, "{said} in {found}");
    }
    // Targets are asked of the model once the file can be read.
    let found = run.refused(3, &["lora.target_modules=[to_q, q]"]);
    assert!(found.contains("lora.target_modules: no layer matches 'q'"), "{found}");
}

/// Encoding alone asks for nothing that only training needs.
#[test]
fn precomputing_is_stopped_by_what_it_needs_and_by_nothing_else() {
    let run = Run::of_copy(&ltx(), "");
    let only_training = ["lora.init=nowhere.safetensors", "hub.push=true", "hub.repo=a/b"];
    let done = run.vtrain("precompute", &[], &only_training);
    assert_eq!(done.status.code(), Some(0), "{}", super::stderr(&done));
    fs::remove_dir_all(run.path("cache")).unwrap();
    fs::remove_file(run.path("model/vae/diffusion_pytorch_model.safetensors")).unwrap();
    let stopped = run.vtrain("precompute", &[], &["datasets.0.buckets=[[17, 64, 96], [17, 65, 96]]"]);
    let said = super::stderr(&stopped);
    assert_eq!(stopped.status.code(), Some(2), "{said}");
    assert!(
        said.contains("datasets[0].buckets[1]: ") && said.contains("model/vae: no safetensors file"),
        "{said}"
    );
    assert!(
        !said.contains("loading") && !run.path("cache/captions").exists(),
        "{said}"
    );
}
