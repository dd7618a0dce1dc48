//! NaN and infinities of any origin are named, and treated by a policy.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use vtrain::train::loss_spikes::LossSpikes;

use super::{FINAL, Run, model, shapes, stderr};
use crate::fuzz::copy;

/// Two clips, a copy of the tiny model, no validation.
fn run(steps: usize) -> Run {
    let run = Run::new("");
    copy(&model(), &run.folder.path().join("model"));
    let data = run.folder.path().join("data");
    shapes(&data, 2);
    let text = format!(
        "output_dir: out\ndevice: cpu\nmodel: {{path: ./model, dtype: f32}}\n\
         datasets: [{{path: data, buckets: [[9, 32, 48]]}}]\nlora: {{rank: 2}}\ntrain: {{steps: {steps}}}\n\
         optimizer: {{lr: 1e-3}}\nlr_scheduler: {{name: constant}}\n"
    );
    fs::write(run.file(), text).unwrap();
    run
}

/// Runs to its end, which is this exit code; what it said.
fn ends(run: &Run, code: i32, more: &[&str]) -> String {
    let output = run.command(more).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

/// Puts NaN in the place of a tensor's first number, in one of the safetensors files of a folder; the file's name.
fn poison(folder: &Path, tensor: &str) -> String {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "safetensors") {
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        let place = {
            let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
            metadata.info(tensor).map(|info| 8 + header + info.data_offsets.0)
        };
        if let Some(place) = place {
            bytes[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            fs::write(&path, bytes).unwrap();
            return path.file_name().unwrap().to_string_lossy().into_owned();
        }
    }
    panic!("no {tensor} in {}", folder.display());
}

/// The names of the tensors of a folder that end so.
fn tensor(folder: &Path, ending: &str) -> String {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    let names = files.flat_map(|path| {
        let bytes = fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        metadata.tensors().into_keys().collect::<Vec<_>>()
    });
    let mut names: Vec<String> = names.filter(|name| name.ends_with(ending)).collect();
    names.sort();
    names.pop().unwrap_or_else(|| panic!("no tensor ends in {ending}"))
}

#[test]
fn a_weight_that_is_not_finite_is_named_by_file_and_tensor_at_the_first_step() {
    let run = run(4);
    let folder = run.folder.path().join("model/transformer");
    let name = tensor(&folder, "transformer_blocks.1.attn1.to_v.weight");
    let file = poison(&folder, &name);
    let said = ends(&run, 5, &[]);
    assert!(
        said.contains("step 1: the loss is not finite: it begins in block 1 (of 0 to 1)"),
        "{said}"
    );
    assert!(
        said.contains(&file) && said.contains(&format!("the tensor {name} holds NaN at index 0")),
        "{said}"
    );
    assert!(
        said.contains("videos/") && said.contains("fetch the file again"),
        "{said}"
    );
    assert!(!run.out().join(FINAL).exists());
}

#[test]
fn a_weight_of_an_encoder_that_is_not_finite_is_named_with_the_clip_or_the_caption() {
    for (part, ending, what) in [
        ("vae", "encoder.conv_out.conv.weight", "its mean holds NaN"),
        ("text_encoder", "final_layer_norm.weight", "its embeds holds NaN"),
    ] {
        let run = run(1);
        let folder = run.folder.path().join("model").join(part);
        let name = tensor(&folder, ending);
        let file = poison(&folder, &name);
        let said = ends(&run, 4, &[]);
        for expected in [
            &file,
            &format!("the tensor {name} holds NaN at index 0"),
            "fetch it again",
            what,
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        let of_what = if part == "vae" { "videos/" } else { "the caption " };
        assert!(said.contains(of_what), "{said}");
    }
}

/// Makes a record hold this number first, with a digest that is right: its tensors' names, formats, shapes and bytes.
fn poison_record(path: &Path, tensor: &str, number: f32) {
    let bytes = fs::read(path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let (start, _) = metadata.info(tensor).unwrap().data_offsets;
    let old = metadata.metadata().as_ref().unwrap()["digest"].clone();
    let mut poisoned = bytes.clone();
    poisoned[8 + header + start..][..4].copy_from_slice(&number.to_le_bytes());
    let file = SafeTensors::deserialize(&poisoned).unwrap();
    let mut hasher = blake3::Hasher::new();
    for name in ["mean", "logvar", "embeds"] {
        if let Ok(view) = file.tensor(name) {
            hasher.update(format!("{name} {:?} {:?}\n", view.dtype(), view.shape()).as_bytes());
            hasher.update(view.data());
        }
    }
    let digest = hasher.finalize().to_string();
    let text = String::from_utf8(poisoned[8..8 + header].to_vec()).unwrap();
    let text = text.replace(&old, &digest);
    poisoned[8..8 + header].copy_from_slice(text.as_bytes());
    fs::write(path, poisoned).unwrap();
}

/// A file's bytes behind its header, whose notes stand in any order.
fn data(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap();
    let (header, _) = SafeTensors::read_metadata(&bytes).unwrap();
    bytes[8 + header..].to_vec()
}

fn records(run: &Run, kind: &str) -> Vec<PathBuf> {
    let folder = run.out().join("precomputed").join(kind);
    let mut records: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    records.sort();
    records
}

#[test]
fn records_that_are_not_finite_are_named_and_made_anew() {
    let run = run(2);
    run.train(&[]);
    let (clip, caption) = (records(&run, "clips").remove(0), records(&run, "captions").remove(0));
    let originals = [&clip, &caption].map(|path| data(path));
    poison_record(&clip, "mean", f32::NAN);
    poison_record(&caption, "embeds", f32::NAN);
    let said = ends(&run, 0, &["--resume", "never"]);
    for (path, what) in [
        (&clip, "its mean holds NaN at index 0"),
        (&caption, "its embeds holds NaN at index 0"),
    ] {
        let line = said.lines().find(|line| line.contains(path.to_str().unwrap()));
        assert!(
            line.is_some_and(|line| line.contains(what) && line.contains("it will be encoded again")),
            "{said}"
        );
    }
    for (path, original) in [&clip, &caption].into_iter().zip(originals) {
        assert!(data(path) == original, "{}", path.display());
    }
}

#[test]
fn a_loss_that_is_not_finite_is_left_out_or_ends_the_run_as_the_run_file_says() {
    // Adapters of 1e30 overflow the network from the second step on.
    let large = ["--set", "optimizer.lr=1e30"];
    let three = run(6);
    let said = ends(&three, 5, &large);
    assert!(
        said.contains("step 2 is left out") && said.contains("step 3 is left out"),
        "{said}"
    );
    assert!(said.contains("step 4: for the 3rd time in a row"), "{said}");
    assert!(
        said.contains("it begins in") && said.contains("videos/") && said.contains("timestep ["),
        "{said}"
    );
    assert_eq!(
        said.matches("looking for weights").count(),
        1,
        "all weights are read once: {said}"
    );
    assert_eq!(three.metrics().len(), 3);
    assert_eq!(three.metrics()[2]["skipped"], 2);
    assert!(!three.out().join(FINAL).exists());

    let two = run(6);
    let said = ends(
        &two,
        5,
        &[&large[..], &["--set", "train.max_consecutive_nonfinite=2"]].concat(),
    );
    assert!(said.contains("step 3: for the 2nd time in a row"), "{said}");

    let stop = run(6);
    let said = ends(&stop, 5, &[&large[..], &["--set", "train.on_nonfinite=stop"]].concat());
    assert!(
        said.contains("step 2: ") && said.contains("train.on_nonfinite is stop"),
        "{said}"
    );
}

#[test]
fn steps_left_out_in_a_row_are_counted_over_a_resume() {
    let run = run(2);
    let large = ["--set", "optimizer.lr=1e30", "--set", "checkpoint.every=1"];
    let said = ends(&run, 0, &large);
    assert!(said.contains("step 2 is left out"), "{said}");
    let said = ends(&run, 5, &[&large[..], &["--set", "train.steps=9"]].concat());
    assert!(said.contains("step 4: for the 3rd time in a row"), "{said}");
}

/// The optimiser counts its own steps: a clip so bright that its loss overflows has none, and a run that resumes after
/// it continues like an uninterrupted one.
#[test]
fn a_step_that_was_left_out_is_none_of_the_optimisers_also_after_a_resume() {
    let begun = || {
        let run = run(6);
        let settings = ["--set", "precompute.latents=mode", "--set", "train.steps=1"];
        run.train(&settings);
        poison_record(&records(&run, "clips")[0], "mean", 3e38);
        run
    };
    let more = |run: &Run, steps: &str, resume: &str| {
        let steps = format!("train.steps={steps}");
        let settings = ["--set", "precompute.latents=mode", "--set", &steps, "--resume", resume];
        ends(run, 0, &settings)
    };
    let (straight, resumed) = (begun(), begun());
    let said = more(&straight, "5", "never");
    assert!(said.matches("is left out").count() >= 2, "{said}");
    let said = more(&resumed, "3", "never");
    assert!(said.contains("is left out"), "{said}");
    more(&resumed, "5", "auto");
    for file in [FINAL, "optimizer.safetensors"] {
        let bytes = |run: &Run| fs::read(run.out().join("checkpoints/step-000005").join(file)).unwrap();
        assert!(bytes(&straight) == bytes(&resumed), "{file}");
    }
}

#[test]
fn adapters_that_are_not_finite_end_the_run_and_no_file_is_written() {
    let run = run(3);
    run.train(&["--set", "train.steps=1", "--set", "checkpoint.every=1"]);
    let good = fs::read(run.out().join(FINAL)).unwrap();
    // In f32 this learning rate is infinite.
    let large = ["--set", "optimizer.lr=1e39", "--set", "checkpoint.every=1", "--resume"];
    let checkpoint = run.out().join("checkpoints/step-000001");
    let said = ends(
        &run,
        5,
        &[&large[..], &["never", "--set", "checkpoint.every=5"]].concat(),
    );
    assert!(said.contains("the adapters are not finite any more, first "), "{said}");
    assert!(said.contains("lora_"), "{said}");
    assert!(!checkpoint.exists() && !run.out().join(FINAL).exists());
    assert!(fs::read(run.out().join("previous-1").join(FINAL)).unwrap() == good);

    // If a checkpoint is scheduled before the loss is known, it is not written.
    let said = ends(&run, 5, &[&large[..], &["never"]].concat());
    assert!(said.contains("a non-finite adapter is not written"), "{said}");
    assert!(said.contains("lora_A.weight holds"), "{said}");
    assert!(!checkpoint.exists());
}

#[test]
fn a_loss_stands_out_from_the_median_of_those_before() {
    let mut spikes = LossSpikes::new(Some(3.0), (0..19).map(f64::from));
    assert_eq!(spikes.add(1000.0), None, "of 19 losses nothing can be said");
    assert_eq!(spikes.add(30.0), None, "the median is 10");
    assert_eq!(spikes.add(30.1), Some(10.0));
    assert_eq!(spikes.add(f64::NAN), None);
    let mut window = LossSpikes::new(Some(3.0), vec![1.0; 20]);
    assert_eq!(window.add(4.0), Some(1.0));
    (0..100).for_each(|_| _ = window.add(4.0));
    assert_eq!(window.add(11.0), None, "older losses are forgotten");
    assert_eq!(window.add(12.5), Some(4.0));
    assert_eq!(LossSpikes::new(None, vec![1.0; 20]).add(1e9), None);
}

#[test]
fn a_resumed_run_tells_of_the_same_losses_that_stand_out() {
    let told = |said: &str| -> Vec<String> {
        let lines = said.lines().filter_map(|line| line.split_once("the loss is"));
        let step = |before: &str| before.split("step ").last().unwrap().trim_end_matches(": ").to_string();
        lines
            .map(|(before, after)| format!("{}{after}", step(before)))
            .collect()
    };
    let sensitive = ["--set", "train.loss_spike=1.01"];
    let whole = run(60);
    let at_once = told(&ends(&whole, 0, &sensitive));
    assert!(at_once.len() > 2, "{at_once:?}");
    assert!(at_once[0].contains("times the median of the steps before: loss ") && at_once[0].contains("videos/"));
    let parts = run(60);
    let first = told(&ends(
        &parts,
        0,
        &[&sensitive[..], &["--set", "train.steps=37"]].concat(),
    ));
    let second = told(&ends(&parts, 0, &sensitive));
    assert!(!first.is_empty() && !second.is_empty(), "{at_once:?}");
    let without_folder = |run: &Run, told: &[String]| -> Vec<String> {
        let folder = run.folder.path().to_str().unwrap();
        told.iter().map(|line| line.replace(folder, "")).collect()
    };
    let resumed = [first, second].concat();
    assert_eq!(without_folder(&whole, &at_once), without_folder(&parts, &resumed));
    let silent = run(30);
    let said = ends(&silent, 0, &["--set", "train.loss_spike=null"]);
    assert!(told(&said).is_empty(), "{said}");
}
