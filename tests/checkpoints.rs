//! Resuming from checkpoints, under all kinds of damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::json;
use vtrain::data::cache::SampleListing;
use vtrain::ops::instructions::Instructions;
use vtrain::optim::adamw::Name;
use vtrain::run_dir::RunDir;
use vtrain::train::checkpoint::{Checkpoints, Config, Loaded, Snapshot, State};
use vtrain::train::chosen::ChosenSettings;
use vtrain::train::{config_diff, data_diff};

use crate::disk::{again, folder_of_child, kill_after, names};

const FILES: [&str; 3] = [
    "optimizer.safetensors",
    "pytorch_lora_weights.safetensors",
    "state.json",
];

fn checkpoints(folder: &Path, limit: usize) -> Checkpoints {
    Checkpoints::new(
        &RunDir::new(folder),
        &Config {
            every: 10,
            limit,
            comfyui: false,
        },
    )
}

fn snapshot(step: u64) -> Snapshot {
    sized(step, 4)
}

/// With `n` numbers in each tensor, all different from step to step.
fn sized(step: u64, n: usize) -> Snapshot {
    let tensor = |from: f32| {
        let values: Vec<f32> = (0..n).map(|i| (step as f32 + from) / (i as f32 + 3.0)).collect();
        Tensor::from_vec(values, (2, n / 2), &Device::Cpu).unwrap()
    };
    let adapter = [("transformer.a.lora_A.weight", tensor(0.0))];
    Snapshot {
        adapter: safetensors::serialize(adapter, None).unwrap(),
        optimizer_name: Name::Adamw,
        optimizer: BTreeMap::from([
            ("a.lora_A.exp_avg".to_string(), tensor(0.25)),
            ("a.lora_A.exp_avg_sq".to_string(), tensor(0.5)),
        ]),
        state: State {
            step,
            samples_seen: 4 * step,
            skipped: 1,
            seed: 42,
            world_size: 1,
            batch_size: 2,
            gradient_accumulation_steps: 2,
            run: settings(),
            fingerprints: BTreeMap::from([
                ("transformer".to_string(), "0123".to_string()),
                ("data".to_string(), "4567".to_string()),
            ]),
            samples: vec![listed("a.mp4", "0a", "1a"), listed("b.mp4", "0b", "1b")],
            chosen: ChosenSettings::default(),
            instructions: Some(Instructions::detect()),
        },
    }
}

/// A sample whose clip and caption have these keys.
fn listed(video: &str, clip: &str, caption: &str) -> SampleListing {
    SampleListing {
        video: video.into(),
        clip: clip.into(),
        caption: caption.into(),
        repeats: 1,
    }
}

fn settings() -> serde_json::Value {
    json!({
        "seed": 42,
        "optimizer": {"name": "adamw", "lr": 1e-4, "epsilon": 1e-15, "beta2": 0.1 + 0.2},
        "lora": {"rank": 8, "target_modules": ["to_q", "to_k"]},
        "datasets": [{"path": "clips", "repeats": 1}],
    })
}

fn assert_same(loaded: &Loaded, expected: &Snapshot) {
    assert_eq!(loaded.snapshot.state, expected.state);
    assert_eq!(loaded.snapshot.adapter, expected.adapter);
    let values = |tensors: &BTreeMap<String, Tensor>| -> Vec<(String, Vec<Vec<f32>>)> {
        let rows = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.to_vec2().unwrap());
        tensors.iter().map(rows).collect()
    };
    assert_eq!(values(&loaded.snapshot.optimizer), values(&expected.optimizer));
}

fn newest_step(checkpoints: &Checkpoints) -> Option<u64> {
    checkpoints.newest().unwrap().map(|loaded| loaded.snapshot.state.step)
}

#[test]
fn a_checkpoint_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(folder.path(), 2);
    assert!(checkpoints.newest().unwrap().is_none());
    let path = checkpoints.save(&snapshot(500)).unwrap();
    assert_eq!(path, folder.path().join("checkpoints/step-000500"));
    assert_eq!(names(&path), FILES);
    assert_same(&checkpoints.newest().unwrap().unwrap(), &snapshot(500));
    assert_same(&Loaded::read(&path).unwrap(), &snapshot(500));
    // Under another name, for --resume PATH.
    let elsewhere = folder.path().join("kept");
    fs::rename(&path, &elsewhere).unwrap();
    assert_same(&Loaded::read(&elsewhere).unwrap(), &snapshot(500));
}

#[test]
fn a_checkpoint_names_its_optimiser_and_one_without_a_name_is_adamws() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(folder.path(), 2);
    let of_8_bits = Snapshot {
        optimizer_name: Name::Adamw8bit,
        ..snapshot(10)
    };
    let path = checkpoints.save(&of_8_bits).unwrap();
    assert_eq!(Loaded::read(&path).unwrap().snapshot.optimizer_name, Name::Adamw8bit);
    // As an older version, or a later one, would have written it.
    let rewrite = |header: Option<&str>| {
        let file = path.join("optimizer.safetensors");
        let bytes = fs::read(&file).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
        let header = header.map(|name| [("optimizer".to_string(), name.to_string())].into());
        let bytes = safetensors::serialize(tensors, header).unwrap();
        fs::write(&file, &bytes).unwrap();
        let state = path.join("state.json");
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
        json["checksums"]["optimizer.safetensors"] = blake3::hash(&bytes).to_hex().to_string().into();
        fs::write(&state, json.to_string()).unwrap();
        Loaded::read(&path)
    };
    assert_eq!(rewrite(None).unwrap().snapshot.optimizer_name, Name::Adamw);
    let told = format!("{:#}", rewrite(Some("lion")).unwrap_err());
    assert!(
        told.contains("optimizer.safetensors") && told.contains("lacks: lion"),
        "{told}"
    );
}

#[test]
fn the_same_state_gives_the_same_files() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let paths = [&one, &two].map(|folder| checkpoints(folder.path(), 1).save(&snapshot(7)).unwrap());
    for name in FILES {
        let [a, b] = paths.each_ref().map(|path| fs::read(path.join(name)).unwrap());
        assert!(a == b, "{name}");
    }
}

#[test]
fn the_newest_stay_up_to_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(folder.path(), 2);
    // More digits than the name has room for must still count as numbers.
    for step in [999_990, 1_000_000, 1_000_010] {
        checkpoints.save(&snapshot(step)).unwrap();
    }
    assert_eq!(
        names(&folder.path().join("checkpoints")),
        ["step-1000000", "step-1000010"]
    );
    assert_eq!(newest_step(&checkpoints), Some(1_000_010));
    // The user's own folder beside them is left alone.
    fs::create_dir(folder.path().join("checkpoints/step-best")).unwrap();
    checkpoints.save(&snapshot(1_000_020)).unwrap();
    assert_eq!(
        names(&folder.path().join("checkpoints")),
        ["step-1000010", "step-1000020", "step-best"]
    );
}

#[test]
fn checkpoints_of_a_course_that_the_run_has_left_go_once_there_is_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(folder.path(), 3);
    for step in [10, 20, 30] {
        checkpoints.save(&snapshot(step)).unwrap();
    }
    // Resumed at 10 by the user's wish, saved at 15.
    checkpoints.save(&snapshot(15)).unwrap();
    assert_eq!(
        names(&folder.path().join("checkpoints")),
        ["step-000010", "step-000015"]
    );
    assert_eq!(newest_step(&checkpoints), Some(15));
}

#[test]
fn the_newest_whole_one_wins() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 7] = [
        ("missing", |file| fs::remove_file(file).unwrap()),
        ("empty", |file| fs::write(file, b"").unwrap()),
        ("cut", |file| {
            let bytes = fs::read(file).unwrap();
            fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("longer", |file| {
            let bytes = fs::read(file).unwrap();
            fs::write(file, [&bytes[..], b"0"].concat()).unwrap();
        }),
        ("zeros", |file| {
            let size = fs::read(file).unwrap().len();
            fs::write(file, vec![0; size]).unwrap();
        }),
        ("a folder", |file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        }),
        ("of another checkpoint", |file| {
            let old = file.to_str().unwrap().replace("step-000020", "step-000010");
            fs::copy(old, file).unwrap();
        }),
    ];
    for (what, damage) in damages {
        for file in FILES {
            let folder = tempfile::tempdir().unwrap();
            let checkpoints = checkpoints(folder.path(), 2);
            checkpoints.save(&snapshot(10)).unwrap();
            let path = checkpoints.save(&snapshot(20)).unwrap();
            damage(&path.join(file));
            let told = format!("{:#}", Loaded::read(&path).unwrap_err());
            // state.json of another checkpoint is whole; what it says of the others is not.
            if (what, file) != ("of another checkpoint", "state.json") {
                assert!(told.contains(&path.join(file).display().to_string()), "{what}: {told}");
            }
            assert_eq!(newest_step(&checkpoints), Some(10), "{file} {what}");
            // The damaged one is replaced when the run comes there again.
            checkpoints.save(&snapshot(20)).unwrap();
            assert_same(&checkpoints.newest().unwrap().unwrap(), &snapshot(20));
        }
    }
}

#[test]
fn no_flipped_bit_changes_what_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let path = checkpoints(folder.path(), 2).save(&snapshot(10)).unwrap();
    for name in FILES {
        let file = path.join(name);
        let bytes = fs::read(&file).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&file, &damaged).unwrap();
            // Only a blank for another blank may pass.
            if let Ok(loaded) = Loaded::read(&path) {
                assert_same(&loaded, &snapshot(10));
            }
        }
        fs::write(&file, &bytes).unwrap();
    }
    assert_same(&Loaded::read(&path).unwrap(), &snapshot(10));
}

#[test]
fn where_all_are_damaged_the_run_does_not_start_over_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(folder.path(), 2);
    for step in [10, 20] {
        let path = checkpoints.save(&snapshot(step)).unwrap();
        fs::remove_file(path.join("state.json")).unwrap();
    }
    let told = checkpoints.newest().unwrap_err().to_string();
    assert!(told.contains("none of the 2 checkpoints can be read"), "{told}");
}

#[test]
fn a_checkpoint_under_a_wrong_name_or_of_another_format_is_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = checkpoints(folder.path(), 2).save(&snapshot(10)).unwrap();
    let renamed = path.with_file_name("step-000099");
    fs::rename(&path, &renamed).unwrap();
    let told = Loaded::read(&renamed).unwrap_err().to_string();
    assert!(told.contains("holds step 10"), "{told}");
    fs::rename(&renamed, &path).unwrap();
    let state = fs::read_to_string(path.join("state.json")).unwrap();
    fs::write(path.join("state.json"), state.replace("\"format\": 2", "\"format\": 7")).unwrap();
    let told = format!("{:#}", Loaded::read(&path).unwrap_err());
    assert!(told.contains("state.json: has format 7"), "{told}");
    let told = Loaded::read(&folder.path().join("nothing")).unwrap_err().to_string();
    assert!(told.ends_with("nothing: not a checkpoint folder"), "{told}");
}

#[test]
fn a_run_with_other_settings_is_refused_and_told_which() {
    let folder = tempfile::tempdir().unwrap();
    let path = checkpoints(folder.path(), 2).save(&snapshot(10)).unwrap();
    let loaded = Loaded::read(&path).unwrap();
    let prints = snapshot(10).state.fingerprints;
    loaded.fits(&settings(), &prints, &[]).unwrap();
    let mut changed = settings();
    changed["optimizer"]["lr"] = json!(2e-4);
    changed["lora"]["target_modules"] = json!(["to_q"]);
    let mut others = prints.clone();
    others.insert("data".into(), "89ab".into());
    let now = [listed("a.mp4", "0a", "1a"), listed("b.mp4", "0b", "1c")];
    let told = loaded.fits(&changed, &others, &now).unwrap_err().to_string();
    let lines: Vec<&str> = told.lines().map(str::trim).collect();
    assert_eq!(
        lines[1..5],
        [
            "optimizer.lr: 0.0001 in the checkpoint, 0.0002 now",
            "lora.target_modules: [\"to_q\",\"to_k\"] in the checkpoint, [\"to_q\"] now",
            "data: has changed since the checkpoint was written",
            "b.mp4: its caption has changed",
        ]
    );
    assert!(lines[0].starts_with(path.to_str().unwrap()), "{told}");
    assert!(lines[5].contains("--resume never"), "{told}");
}

#[test]
fn differences_are_listed_key_by_key() {
    let then = json!({"a": 1, "b": {"c": [1, 2], "d": "x"}, "list": [{"p": 1}, {"p": 2}], "gone": null});
    let now = json!({"b": {"d": "x", "c": [1, 3]}, "a": 1, "list": [{"p": 1}, {"p": 3}, {"p": 4}], "new": {"e": true}});
    assert!(config_diff::list(&then, &then).is_empty());
    assert_eq!(
        config_diff::list(&then, &now),
        [
            "b.c: [1,2] in the checkpoint, [1,3] now",
            "list[1].p: 2 in the checkpoint, 3 now",
            "list[2]: nothing in the checkpoint, {\"p\":4} now",
            "gone: null in the checkpoint, nothing now",
            "new: nothing in the checkpoint, {\"e\":true} now",
        ]
    );
}

#[test]
fn what_a_killed_process_left_goes_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    checkpoints(folder.path(), 2).save(&snapshot(10)).unwrap();
    let left = folder.path().join("checkpoints/.vtrain-abcdef");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("pytorch_lora_weights.safetensors"), b"half").unwrap();
    assert_eq!(newest_step(&checkpoints(folder.path(), 2)), Some(10));
    assert!(!left.exists());
}

#[test]
fn whenever_a_run_is_killed_its_newest_checkpoint_is_whole() {
    const SIZE: usize = 50_000;
    if let Some(folder) = folder_of_child() {
        let checkpoints = checkpoints(&folder, 2);
        let from = newest_step(&checkpoints).unwrap_or(0);
        for step in from + 1.. {
            checkpoints.save(&sized(step, SIZE)).unwrap();
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mut before = 0;
    for round in 0..8 {
        let mut child = again(
            "checkpoints::whenever_a_run_is_killed_its_newest_checkpoint_is_whole",
            folder.path(),
            &[],
        );
        let child = child.spawn().unwrap();
        let next = folder.path().join(format!("checkpoints/step-{:06}", before + 1));
        kill_after(child, 11 * round, || next.exists());
        let newest = checkpoints(folder.path(), 2).newest().unwrap().unwrap();
        let step = newest.snapshot.state.step;
        assert_same(&newest, &sized(step, SIZE));
        assert!(step > before, "step {step} after {before}");
        before = step;
        let there = names(&folder.path().join("checkpoints"));
        assert!(there.len() <= 3, "{there:?}"); // killed before the oldest was removed
    }
}

/// A file size limit stands for a full disk: it needs neither root nor a file system of its own.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told_by_file_and_the_old_checkpoints_stay() {
    if let Some(folder) = folder_of_child() {
        let checkpoints = checkpoints(&folder, 2);
        let told = format!("{:#}", checkpoints.save(&sized(30, 100_000)).unwrap_err());
        let path = folder.join("checkpoints/step-000030/pytorch_lora_weights.safetensors");
        assert!(
            told.contains(&format!("{}: cannot be written: ", path.display())),
            "{told}"
        );
        assert!(
            told.starts_with("step 30 is not saved; when started again, the run resumes from step 20"),
            "{told}"
        );
        assert_eq!(newest_step(&checkpoints), Some(20));
        std::process::exit(17);
    }
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(folder.path(), 2);
    for step in [10, 20] {
        checkpoints.save(&snapshot(step)).unwrap();
    }
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""];
    let test = "checkpoints::a_full_disk_is_told_by_file_and_the_old_checkpoints_stay";
    let child = again(test, folder.path(), &limited).output().unwrap();
    assert_eq!(
        child.status.code(),
        Some(17),
        "{}",
        String::from_utf8_lossy(&child.stderr)
    );
    assert_eq!(
        names(&folder.path().join("checkpoints")),
        ["step-000010", "step-000020"]
    );
    for step in [10, 20] {
        let path = folder.path().join(format!("checkpoints/step-{step:06}"));
        assert_same(&Loaded::read(&path).unwrap(), &snapshot(step));
    }
}

#[test]
fn where_no_folder_can_be_made_the_path_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("checkpoints");
    fs::write(&path, b"a file in the way").unwrap();
    let told = format!("{:#}", checkpoints(folder.path(), 2).save(&snapshot(1)).unwrap_err());
    assert!(
        told.contains(&format!("{}: cannot be written: ", path.display())),
        "{told}"
    );
}

#[test]
fn data_that_differ_are_told_clip_by_clip() {
    let then = [
        listed("x/a.mp4", "A", "1"),
        listed("x/b.mp4", "B", "2"),
        listed("x/c.mp4", "C", "3"),
    ];
    let told = |now: &[SampleListing]| data_diff::list(&then, now);
    let [a, b, c] = then.clone();
    assert_eq!(told(&[a.clone(), b.clone()]), ["x/c.mp4: is gone"]);
    assert_eq!(
        told(&[a.clone(), b.clone(), c.clone(), listed("x/d.mp4", "D", "4")]),
        ["x/d.mp4: is new"]
    );
    let other = listed("x/b.mp4", "BB", "22");
    let both = "x/b.mp4: the clip is different, or selected differently; its caption has changed";
    assert_eq!(told(&[a.clone(), other, c.clone()]), [both]);
    let twice = SampleListing {
        repeats: 2,
        ..b.clone()
    };
    assert_eq!(
        told(&[a.clone(), twice, c.clone()]),
        ["x/b.mp4: repeats: 1 in the checkpoint, 2 now"]
    );
    // A folder that was moved is no change; what was changed in it is found by name.
    let moved: Vec<SampleListing> = then
        .iter()
        .map(|s| listed(&s.video.replace('x', "y"), &s.clip, &s.caption))
        .collect();
    assert_eq!(told(&moved), ["the same clips and captions in another order"]);
    let mut changed = moved.clone();
    changed[1].caption = "22".into();
    assert_eq!(told(&changed), ["y/b.mp4: its caption has changed"]);
    // The same clip twice is not the same clip once.
    assert_eq!(told(&[a.clone(), a.clone(), b.clone(), c.clone()]), ["x/a.mp4: is new"]);
    assert_eq!(
        told(&[c.clone(), b.clone(), a.clone()]),
        ["the same clips and captions in another order"]
    );
    // An encoder that changed is one line.
    let all: Vec<SampleListing> = then
        .iter()
        .map(|s| listed(&s.video, &s.clip.repeat(2), &s.caption))
        .collect();
    let [line] = &told(&all)[..] else { panic!("one line") };
    assert!(line.starts_with("all clips: "), "{line}");
    // A checkpoint from before clips were listed.
    assert!(data_diff::list(&[], &then)[0].contains("earlier version"));
    let many: Vec<SampleListing> = (0..20)
        .map(|n| listed(&format!("{n}.mp4"), &n.to_string(), "1"))
        .collect();
    let lines = data_diff::list(&many, &many[..1]);
    assert_eq!((lines.len(), lines[10].as_str()), (11, "and 9 more"));
}

#[test]
fn a_checkpoint_from_before_samples_were_listed_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut old = snapshot(10);
    old.state.samples.clear();
    let path = checkpoints(folder.path(), 2).save(&old).unwrap();
    let state = path.join("state.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    json["format"] = json!(1);
    json["state"].as_object_mut().unwrap().remove("samples");
    let compact = serde_json::to_vec(&json["state"]).unwrap();
    json["checksums"]["state.json"] = json!(blake3::hash(&compact).to_string());
    fs::write(&state, serde_json::to_vec(&json).unwrap()).unwrap();
    let loaded = Loaded::read(&path).unwrap();
    assert!(loaded.snapshot.state.samples.is_empty());
    loaded.fits(&settings(), &old.state.fingerprints, &[]).unwrap();
    json["format"] = json!(3);
    fs::write(&state, serde_json::to_vec(&json).unwrap()).unwrap();
    assert!(format!("{:#}", Loaded::read(&path).unwrap_err()).contains("format 3"));
}

#[test]
fn a_run_that_goes_on_upon_another_kind_of_processor_is_told() {
    let then = snapshot(10).state;
    let with = |instructions| State {
        instructions,
        ..then.clone()
    };
    let other = Instructions {
        f32: "abacus".into(),
        bf16: "fingers".into(),
    };
    assert_eq!(then.other_instructions(&then), None);
    assert_eq!(then.other_instructions(&with(None)), None); // a GPU
    assert_eq!(with(None).other_instructions(&then), None); // an earlier version
    let told = then.other_instructions(&with(Some(other))).unwrap();
    assert!(
        told.contains("this one computes f32 by abacus, bf16 by fingers"),
        "{told}"
    );
}
