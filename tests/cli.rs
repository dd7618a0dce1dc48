//! Command line: verbs, exit codes, output streams.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn vtrain(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vtrain"))
        .args(args)
        .output()
        .expect("the program starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A run file in a folder of its own, whose data set is the shipped one.
fn run_file(extra: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.yaml");
    let shapes = shipped("datasets/shapes");
    let text = format!(
        "output_dir: out\nmodel: {{path: THUDM/CogVideoX-2b}}\n\
         datasets:\n  - path: {}\n    buckets: [[17, 64, 96], [33, 64, 96]]\n{extra}",
        shapes.display()
    );
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_string();
    (folder, path)
}

#[test]
fn help_names_every_verb_and_the_exit_codes() {
    let output = vtrain(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    for word in [
        "train",
        "check-dataset",
        "precompute",
        "completions",
        "man",
        "--config",
        "130  interrupted",
    ] {
        assert!(stdout(&output).contains(word), "{word}\n{}", stdout(&output));
    }
    assert_eq!(vtrain(&["--version"]).status.code(), Some(0));
}

#[test]
fn wrong_usage_exits_with_2() {
    for args in [
        &["--nonsense"][..],
        &["frobnicate"],
        &["check-dataset"],
        &["train"],
        &["-q", "-v", "train"],
        &[],
    ] {
        assert_eq!(vtrain(args).status.code(), Some(2), "{args:?}");
    }
    let output = vtrain(&["train", "--config", "no/such/file.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("no/such/file.yaml: cannot be read"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_verb_train_may_be_left_out() {
    let (folder, path) = run_file("");
    for args in [
        &["--config", &path, "--dry-run"][..],
        &["train", "--config", &path, "--dry-run"],
        &["-q", "--config", &path, "--dry-run", "--set", "seed=7"],
        &["-q", "train", "--config", &path, "--dry-run"],
    ] {
        let written = folder.path().join("out/config.yaml");
        let _ = std::fs::remove_file(&written);
        let output = vtrain(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}\n{}", stderr(&output));
        assert!(stdout(&output).is_empty());
        // What was written is a valid run file that means the same from anywhere.
        let written = written.to_str().unwrap();
        assert_eq!(vtrain(&["--config", written, "--dry-run"]).status.code(), Some(0));
    }
}

#[test]
fn a_table_goes_to_standard_output_and_the_rest_to_standard_error() {
    let (_folder, path) = run_file("");
    let output = vtrain(&["check-dataset", "--config", &path]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let clips = std::fs::read_to_string(shipped("datasets/shapes/videos.txt"))
        .unwrap()
        .lines()
        .count();
    assert_eq!(stdout(&output).lines().count(), clips + 1);
    assert!(
        stderr(&output).contains(&format!("{clips} clips accepted, 0 refused")),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("The cache will take"));
    let quiet = vtrain(&["-q", "check-dataset", "--config", &path]);
    assert!(stderr(&quiet).is_empty(), "{}", stderr(&quiet));
}

#[test]
fn json_parses_and_holds_every_clip() {
    let (_folder, path) = run_file("");
    let output = vtrain(&["check-dataset", "--config", &path, "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let samples = json["samples"].as_array().unwrap();
    assert_eq!(samples.len() as u64, json["totals"]["accepted"].as_u64().unwrap());
    for sample in samples {
        assert_eq!(
            (sample["height"].as_u64(), sample["width"].as_u64()),
            (Some(64), Some(96))
        );
        assert!(sample["bucket"][0] == 17 || sample["bucket"][0] == 33, "{sample}");
        assert!(!sample["caption"].as_str().unwrap().is_empty());
    }
    // Mean and log-variance of 16 channels, (17 - 1) / 4 + 1 = 5 or (33 - 1) / 4 + 1 = 9 frames of 8 x 12, in f32.
    let frames: u64 = samples.iter().map(|s| if s["bucket"][0] == 17 { 5 } else { 9 }).sum();
    assert_eq!(
        json["cache"]["latent_bytes"].as_u64(),
        Some(frames * 2 * 16 * 8 * 12 * 4)
    );
}

#[test]
fn a_bad_clip_stops_a_run_with_3_unless_it_may_be_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let good = std::fs::read_dir(shipped("datasets/shapes/videos"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    std::fs::copy(good, folder.path().join("good.mp4")).unwrap();
    std::fs::write(folder.path().join("good.txt"), "A good clip").unwrap();
    std::fs::write(folder.path().join("bad.mp4"), "").unwrap();
    std::fs::write(folder.path().join("bad.txt"), "A bad clip").unwrap();
    let path = folder.path().to_str().unwrap();
    let output = vtrain(&["check-dataset", path]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(stdout(&output).lines().count(), 2, "{}", stdout(&output));
    assert!(stderr(&output).contains("zero bytes"), "{}", stderr(&output));

    let run = folder.path().join("run.yaml");
    std::fs::write(
        &run,
        "model: {path: a/b}\noutput_dir: out\ndatasets: [{path: ., buckets: [[17, 64, 96]]}]\n",
    )
    .unwrap();
    let run = run.to_str().unwrap();
    assert_eq!(vtrain(&["--config", run, "--dry-run"]).status.code(), Some(3));
    assert!(
        !folder.path().join("out").exists(),
        "a run that may not start leaves nothing behind"
    );
    let skip = vtrain(&["--config", run, "--dry-run", "--set", "datasets.0.on_invalid_clip=skip"]);
    assert_eq!(skip.status.code(), Some(0), "{}", stderr(&skip));
    assert!(stderr(&skip).contains("warning: skipped: "), "{}", stderr(&skip));
}

#[test]
fn every_command_that_reads_a_run_file_takes_overrides() {
    let (_folder, path) = run_file("");
    for command in ["train", "check-dataset", "precompute", "bench"] {
        let output = vtrain(&[
            command,
            "--config",
            &path,
            "--set",
            "lora.rank=many",
            "--set",
            "seed=often",
        ]);
        assert_eq!(output.status.code(), Some(2), "{command}");
        for set in ["--set lora.rank=many: lora.rank: ", "--set seed=often: seed: "] {
            assert!(stderr(&output).contains(set), "{command}: {}", stderr(&output));
        }
    }
}

/// Headers and packets are whole, and some bytes of the pictures are not.
#[test]
fn damage_inside_a_clip_is_found_by_decoding_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(shipped("tests/fixtures/video/bt709.mp4")).unwrap();
    let (middle, some) = (bytes.len() / 2, bytes.len() / 8);
    bytes[middle..middle + some.min(400)].fill(0x55);
    std::fs::write(folder.path().join("a.mp4"), bytes).unwrap();
    std::fs::write(folder.path().join("a.txt"), "A clip").unwrap();
    let path = folder.path().to_str().unwrap();
    let output = vtrain(&["check-dataset", path]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = vtrain(&["check-dataset", path, "--decode"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("a.mp4: cannot be decoded"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn completions_and_manual_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            stdout(&vtrain(&["completions", shell])).contains("check-dataset"),
            "{shell}"
        );
    }
    assert!(stdout(&vtrain(&["man"])).contains(".TH vtrain"));
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(vtrain(&["man", folder.path().to_str().unwrap()]).status.code(), Some(0));
    assert!(folder.path().join("vtrain-check-dataset.1").exists());
}

#[test]
fn one_of_each_broken_thing_yields_one_line_each() {
    let folder = tempfile::tempdir().unwrap();
    let set = folder.path().join("set");
    std::fs::create_dir_all(&set).unwrap();
    let fixture = |name: &str| std::fs::read(shipped("tests/fixtures/video").join(name)).unwrap();
    let whole = fixture("long_gop.mp4");
    let files: [(&str, Vec<u8>); 7] = [
        ("good.mp4", whole.clone()),
        ("empty.mp4", Vec::new()),
        ("text.mp4", b"this is no film".to_vec()),
        ("half.mp4", whole[..whole.len() / 2].to_vec()),
        ("sound.mp4", fixture("sound_only.mp4")),
        ("short.mp4", fixture("untagged.mp4")), // 12 frames
        ("silent.mp4", whole.clone()),
    ];
    for (name, bytes) in &files {
        std::fs::write(set.join(name), bytes).unwrap();
    }
    std::fs::write(folder.path().join("outside.mp4"), &whole).unwrap();
    let names = "good.mp4\nempty.mp4\ntext.mp4\nhalf.mp4\nsound.mp4\nshort.mp4\nsilent.mp4\ngone.mp4\n../outside.mp4\n";
    std::fs::write(set.join("videos.txt"), names).unwrap();
    // The seventh caption is empty.
    std::fs::write(set.join("prompt.txt"), "a\nb\nc\nd\ne\nf\n\nh\ni\n").unwrap();
    let uneven = folder.path().join("uneven");
    std::fs::create_dir_all(&uneven).unwrap();
    std::fs::write(uneven.join("videos.txt"), "a.mp4\nb.mp4\n").unwrap();
    std::fs::write(uneven.join("prompt.txt"), "one caption\n").unwrap();
    std::fs::write(uneven.join("a.mp4"), &whole).unwrap();
    let run = folder.path().join("run.yaml");
    let buckets = "buckets: [[17, 48, 64]]";
    let text = format!("model: {{path: a/b}}\ndatasets: [{{path: set, {buckets}}}, {{path: uneven, {buckets}}}]\n");
    std::fs::write(&run, text).unwrap();

    let output = vtrain(&["check-dataset", "--config", run.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(stdout(&output).lines().count(), 3, "{}", stdout(&output));
    let said = stderr(&output);
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("error: /")).collect();
    for (place, what) in [
        ("videos.txt:2: empty.mp4", "zero bytes"),
        ("videos.txt:3: text.mp4", "libav finds no valid data"),
        ("videos.txt:4: half.mp4", "ends before its clip does"),
        ("videos.txt:5: sound.mp4", "audio only"),
        ("videos.txt:6: short.mp4", "too short: it has 12 frames"),
        ("prompt.txt:7: silent.mp4", "the caption is empty"),
        ("videos.txt:8: gone.mp4", "no such file"),
        ("videos.txt:9: ../outside.mp4", "leads out of the data set's folder"),
        ("uneven/videos.txt", "names 2 clips but prompt.txt has 1 caption"),
    ] {
        let found = lines
            .iter()
            .filter(|line| line.contains(place) && line.contains(what))
            .count();
        assert_eq!(found, 1, "{place}: {what}\n{said}");
    }
    assert_eq!(lines.len(), 9, "{said}");
}
