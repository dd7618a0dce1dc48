//! Logs of a run, which are the same after a resume.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use protobuf::Message as _;
use tensorboard_proto::event::Event;
use vtrain::models::family::LoraLoading;
use vtrain::process::memory;
use vtrain::run_dir::RunDir;
use vtrain::train::metrics::{Config, Metrics, Record};
use vtrain::train::model_card::{Facts, OtherTransformer, Sample, Task};
use vtrain::train::progress::{Progress, Smoothed};
use vtrain::video::Frames;

use crate::disk::{again, folder_of_child, kill_after};
use crate::needs::python;

const TAGS: [&str; 5] = ["grad_norm", "loss", "lr", "samples_per_second", "step_seconds"];

fn record(step: u64) -> Record {
    Record {
        step,
        loss: 0.1 / step as f64 + 1e-17,
        grad_norm: 1.0 / 3.0,
        lr: 3e-5,
        step_seconds: 0.25,
        samples_seen: 4 * step,
        peak_memory_bytes: Some(1 << 30),
        skipped: None,
        communication: None,
    }
}

fn open(folder: &Path, resumed_at: Option<u64>) -> Metrics {
    Metrics::open(&RunDir::new(folder), &Config { tensorboard: true }, resumed_at).unwrap()
}

/// Runs from a step to another, with a validation clip after every tenth.
fn run(folder: &Path, resumed_at: Option<u64>, to: u64) {
    let mut metrics = open(folder, resumed_at);
    for step in resumed_at.unwrap_or(0) + 1..=to {
        metrics.record(&record(step)).unwrap();
        if step % 10 == 0 {
            metrics.show(step, "validation/0 a ball", &clip()).unwrap();
            metrics.sync();
        }
    }
}

/// Six frames of 4 rows and 10 columns, each of one grey.
fn clip() -> Frames {
    Frames {
        data: (0..6).flat_map(|frame| [frame * 40; 4 * 10 * 3]).collect(),
        num_frames: 6,
        height: 4,
        width: 10,
    }
}

fn log(folder: &Path) -> String {
    fs::read_to_string(folder.join("metrics.jsonl")).unwrap()
}

fn expected(to: u64) -> String {
    let lines = (1..=to).map(|step| serde_json::to_string(&record(step)).unwrap() + "\n");
    lines.collect()
}

fn event_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("tensorboard")).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Whole records of an event file, as TensorFlow frames them. Stops at a torn one and returns what is left.
fn records(file: &Path) -> (Vec<Vec<u8>>, usize) {
    let bytes = fs::read(file).unwrap();
    let (mut at, mut found) = (0, Vec::new());
    while let Some(length) = bytes.get(at..at + 8) {
        let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let Some(data) = bytes.get(at + 12..at + 12 + length) else {
            break;
        };
        if bytes.len() < at + 16 + length {
            break;
        }
        found.push(data.to_vec());
        at += 16 + length;
    }
    (found, bytes.len() - at)
}

/// Returns the steps logged under each tag, file after file.
pub fn told(folder: &Path) -> BTreeMap<String, Vec<i64>> {
    let mut told: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for file in event_files(folder) {
        let (records, torn) = records(&file);
        assert_eq!(torn, 0, "{}", file.display());
        for (i, data) in records.iter().enumerate() {
            let event = Event::parse_from_bytes(data).unwrap();
            assert_eq!(event.get_file_version() == "brain.Event:2", i == 0);
            for value in event.get_summary().get_value() {
                told.entry(value.get_tag().into()).or_default().push(event.get_step());
            }
        }
    }
    told
}

/// The pictures shown, PNG files, by tag and step.
pub fn pictures(folder: &Path) -> BTreeMap<(String, i64), Vec<u8>> {
    let mut pictures = BTreeMap::new();
    for data in event_files(folder).iter().flat_map(|file| records(file).0) {
        let event = Event::parse_from_bytes(&data).unwrap();
        for value in event.get_summary().get_value().iter().filter(|value| value.has_image()) {
            let picture = value.get_image().get_encoded_image_string().to_vec();
            pictures.insert((value.get_tag().into(), event.get_step()), picture);
        }
    }
    pictures
}

/// Both logs tell of the steps up to `to`, each once, and of clips after every tenth.
fn assert_told(folder: &Path, to: u64) {
    assert_eq!(log(folder), expected(to));
    let told = told(folder);
    for tag in TAGS {
        assert_eq!(told[tag], (1..=to as i64).collect::<Vec<_>>(), "{tag}");
    }
    let clips: Vec<i64> = (1..=to as i64).filter(|step| step % 10 == 0).collect();
    assert_eq!(told.get("validation/0 a ball").cloned().unwrap_or_default(), clips);
}

/// TensorBoard's own reader, of a log that was torn and resumed. Others here read the events themselves.
#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn tensorboard_reads_every_step_of_a_torn_and_resumed_log_once() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), None, 14);
    let newest = event_files(folder.path()).pop().unwrap();
    let size = fs::metadata(&newest).unwrap().len();
    fs::File::options()
        .write(true)
        .open(&newest)
        .unwrap()
        .set_len(size - 7)
        .unwrap();
    run(folder.path(), Some(10), 20);
    assert_told(folder.path(), 20);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/checks/check_tensorboard.py");
    let output = Command::new(python()).arg(script).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn each_step_is_one_line_whose_numbers_read_back_exactly() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), None, 12);
    assert_told(folder.path(), 12);
    let first = log(folder.path()).lines().next().unwrap().to_string();
    assert_eq!(
        first,
        "{\"step\":1,\"loss\":0.10000000000000002,\"grad_norm\":0.3333333333333333,\"lr\":0.00003,\
         \"step_seconds\":0.25,\"samples_seen\":4,\"peak_memory_bytes\":1073741824}"
    );
    for (line, step) in log(folder.path()).lines().zip(1..) {
        let text = line.split("\"loss\":").nth(1).unwrap().split(',').next().unwrap();
        assert_eq!(text.parse::<f64>().unwrap(), record(step).loss);
    }
}

#[test]
fn a_step_that_was_skipped_says_so_and_its_loss_is_null() {
    let folder = tempfile::tempdir().unwrap();
    let mut metrics = open(folder.path(), None);
    let skipped = Record {
        loss: f64::NAN,
        grad_norm: f64::INFINITY,
        peak_memory_bytes: None,
        skipped: Some(3),
        ..record(1)
    };
    metrics.record(&skipped).unwrap();
    assert_eq!(
        log(folder.path()),
        "{\"step\":1,\"loss\":null,\"grad_norm\":null,\"lr\":0.00003,\"step_seconds\":0.25,\"samples_seen\":4,\
         \"peak_memory_bytes\":null,\"skipped\":3}\n"
    );
    drop(metrics);
    // Such a line is whole: it stays.
    open(folder.path(), Some(1)).record(&record(2)).unwrap();
    assert_eq!(log(folder.path()).lines().count(), 2);
}

#[test]
fn a_resumed_run_tells_every_step_once() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), None, 37);
    run(folder.path(), Some(20), 45);
    run(folder.path(), Some(45), 45);
    run(folder.path(), Some(30), 60);
    assert_told(folder.path(), 60);
}

#[test]
fn a_run_that_starts_anew_begins_both_logs_anew() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), None, 25);
    run(folder.path(), None, 11);
    assert_told(folder.path(), 11);
    assert_eq!(event_files(folder.path()).len(), 1);
}

#[test]
fn wherever_a_line_was_torn_the_resumed_log_is_whole() {
    let whole = expected(3);
    let cut = expected(2).len();
    for end in cut..whole.len() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("metrics.jsonl"), &whole[..end]).unwrap();
        let mut metrics = Metrics::open(&RunDir::new(folder.path()), &Config { tensorboard: false }, Some(2)).unwrap();
        metrics.record(&record(3)).unwrap();
        assert_eq!(log(folder.path()), whole, "torn at {end}");
    }
}

#[test]
fn a_line_that_is_torn_or_told_twice_goes_and_the_rest_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let lines: Vec<String> = expected(4).lines().map(String::from).collect();
    let text = format!(
        "{}\n{}\n\u{0}\u{0}{}\n{}\n{}\n{}\n",
        lines[0],
        lines[1],
        &lines[0][..20],
        lines[1],
        lines[2],
        lines[3]
    );
    fs::write(folder.path().join("metrics.jsonl"), text).unwrap();
    drop(open(folder.path(), Some(3)));
    assert_eq!(log(folder.path()), expected(3));
}

#[test]
fn wherever_an_event_was_torn_the_resumed_events_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), None, 12);
    let file = event_files(folder.path()).remove(0);
    let bytes = fs::read(&file).unwrap();
    let last = records(&file).0.last().unwrap().len() + 16;
    for lost in 1..last {
        for later in event_files(folder.path()).iter().skip(1) {
            fs::remove_file(later).unwrap();
        }
        fs::write(&file, &bytes[..bytes.len() - lost]).unwrap();
        let mut metrics = open(folder.path(), Some(11));
        metrics.record(&record(12)).unwrap();
        drop(metrics);
        let told = told(folder.path());
        for tag in TAGS {
            assert_eq!(told[tag], (1..=12).collect::<Vec<_>>(), "{tag}, {lost} bytes lost");
        }
    }
    assert_told(folder.path(), 12);
}

#[test]
fn a_damaged_event_file_is_cut_where_the_damage_begins() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), None, 9);
    let file = event_files(folder.path()).remove(0);
    let bytes = fs::read(&file).unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x41;
        for later in event_files(folder.path()) {
            fs::remove_file(later).unwrap();
        }
        fs::write(&file, damaged).unwrap();
        drop(open(folder.path(), Some(9)));
        let told = told(folder.path());
        let steps = told.get("loss").cloned().unwrap_or_default();
        assert_eq!(steps, (1..=steps.len() as i64).collect::<Vec<_>>());
        assert!(steps.len() < 9, "the damage at {at} was not seen");
    }
}

#[test]
fn whenever_a_run_is_killed_the_resumed_one_tells_every_step_once() {
    if let Some(folder) = folder_of_child() {
        let from = fs::read_to_string(folder.join("resume")).unwrap().parse().unwrap();
        run(&folder, Some(from), u64::MAX);
    }
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), None, 10);
    let mut resumed_at = 10;
    for round in 0..6 {
        fs::write(folder.path().join("resume"), resumed_at.to_string()).unwrap();
        let test = "watching::whenever_a_run_is_killed_the_resumed_one_tells_every_step_once";
        let child = again(test, folder.path(), &[]).spawn().unwrap();
        let lines = || log(folder.path()).lines().count() as u64;
        kill_after(child, 3 * round, || lines() > resumed_at + 20);
        // As if the last checkpoint was some steps back.
        resumed_at = lines() - 13;
    }
    run(folder.path(), Some(resumed_at), resumed_at + 5);
    assert_told(folder.path(), resumed_at + 5);
}

#[test]
fn event_files_of_one_second_do_not_collide_and_stay_in_order() {
    let folder = tempfile::tempdir().unwrap();
    for step in 1..=5 {
        run(folder.path(), Some(step - 1), step);
    }
    assert_eq!(event_files(folder.path()).len(), 5);
    assert_told(folder.path(), 5);
}

#[test]
fn a_name_that_is_taken_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let name = |second: u64| {
        folder
            .path()
            .join(format!("tensorboard/events.out.tfevents.{second:010}.vtrain"))
    };
    // Not by files, behind whose seconds a new one would begin anyway.
    let taken = now..now + 300;
    taken
        .clone()
        .for_each(|second| fs::create_dir_all(name(second)).unwrap());
    run(folder.path(), None, 1);
    assert!(name(taken.end).is_file());
}

#[test]
fn a_log_that_ends_before_the_checkpoint_tells_no_rate_across_the_gap() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), None, 5);
    run(folder.path(), Some(9), 12);
    let told = told(folder.path());
    assert_eq!(told["loss"], [1, 2, 3, 4, 5, 10, 11, 12]);
    assert_eq!(told["samples_per_second"], [1, 2, 3, 4, 5, 11, 12]);
}

#[test]
fn without_tensorboard_there_are_no_events_and_old_ones_are_cut_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let without = Config { tensorboard: false };
    let mut metrics = Metrics::open(&RunDir::new(folder.path()), &without, None).unwrap();
    metrics.record(&record(1)).unwrap();
    metrics.show(1, "clip", &clip()).unwrap();
    metrics.sync();
    assert!(!folder.path().join("tensorboard").exists());
    run(folder.path(), Some(1), 9);
    drop(Metrics::open(&RunDir::new(folder.path()), &without, Some(4)).unwrap());
    assert_eq!(told(folder.path())["loss"], [2, 3, 4]);
}

#[test]
fn a_clip_is_shown_as_frames_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let mut metrics = open(folder.path(), None);
    metrics.show(10, "validation/0", &clip()).unwrap();
    let nothing = Frames {
        data: Vec::new(),
        num_frames: 0,
        height: 4,
        width: 10,
    };
    metrics.show(10, "validation/1", &nothing).unwrap();
    drop(metrics);
    let (records, _) = records(&event_files(folder.path())[0]);
    assert_eq!(records.len(), 2);
    let event = Event::parse_from_bytes(&records[1]).unwrap();
    let value = &event.get_summary().get_value()[0];
    assert_eq!(value.get_tag(), "validation/0");
    let image = value.get_image();
    assert_eq!((image.get_height(), image.get_width()), (4, 40));
    let png = folder.path().join("strip.png");
    fs::write(&png, image.get_encoded_image_string()).unwrap();
    let seen = vtrain::video::Clip::open(&png).unwrap();
    assert_eq!((seen.height(), seen.width()), (4, 40));
    let fit = vtrain::video::Fit::squash((4, 40));
    let pixels = seen.decode_fitted(&[0], &fit).unwrap().data;
    // Frames 0, 1, 3 and 5 of six.
    let row: Vec<u8> = pixels[..120].chunks(30).map(|frame| frame[0]).collect();
    assert_eq!(row, [0, 40, 120, 200]);
    assert_eq!(pixels[..120], pixels[360..]);
}

#[test]
fn what_cannot_be_written_is_an_error_by_path() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tensorboard"), b"a file in the way").unwrap();
    let told = Metrics::open(&RunDir::new(folder.path()), &Config::default(), None).unwrap_err();
    assert!(format!("{told:#}").contains("tensorboard: cannot be"), "{told:#}");
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("metrics.jsonl")).unwrap();
    let told = Metrics::open(&RunDir::new(folder.path()), &Config::default(), None).unwrap_err();
    assert!(format!("{told:#}").contains("metrics.jsonl: cannot be"), "{told:#}");
}

/// A file size limit stands for a full disk.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_tears_no_line_and_ends_no_run() {
    if let Some(folder) = folder_of_child() {
        let mut metrics = open(&folder, None);
        (1..=1000).for_each(|step| metrics.record(&record(step)).unwrap());
        metrics.sync();
        std::process::exit(17);
    }
    let folder = tempfile::tempdir().unwrap();
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""];
    let test = "watching::a_full_disk_tears_no_line_and_ends_no_run";
    let child = again(test, folder.path(), &limited).output().unwrap();
    assert_eq!(
        child.status.code(),
        Some(17),
        "{}",
        String::from_utf8_lossy(&child.stderr)
    );
    // Only whole lines and events are there, enough to resume from.
    let whole = log(folder.path()).lines().count() as u64;
    assert!((100..1000).contains(&whole), "{whole}");
    assert_eq!(log(folder.path()), expected(whole));
    for file in event_files(folder.path()) {
        assert_eq!(records(&file).1, 0, "a torn event");
    }
    let at = told(folder.path())["loss"].len() as u64 - 10;
    run(folder.path(), Some(at), at + 2);
    assert_eq!(told(folder.path())["loss"], (1..=at as i64 + 2).collect::<Vec<_>>());
}

#[cfg(target_os = "linux")]
#[test]
fn peak_memory_outlives_what_was_held() {
    const SIZE: u64 = 64 << 20;
    let before = memory::resident().unwrap();
    let held = vec![1_u8; SIZE as usize];
    let during = memory::resident().unwrap();
    assert!(held[SIZE as usize / 2] == 1 && during.now <= during.peak);
    drop(held);
    // The kernel counts in portions, and other tests come and go meanwhile.
    assert!(memory::resident().unwrap().peak >= SIZE);
    assert!(during.peak + SIZE / 4 >= before.peak);
}

#[test]
fn a_smoothed_number_starts_at_the_first_value_and_follows_the_rest() {
    // Python: m = w = 0
    //         for x in [3, 5, nan, 4]:
    //             if x == x: m, w = .9 * m + .1 * x, .9 * w + .1; print(m / w)
    let mut smoothed = Smoothed::new(0.9);
    assert_eq!(smoothed.get(), None);
    let expected = [3.0, 4.052631578947368, 4.052631578947368, 4.033210332103321];
    for (value, expected) in [3.0, 5.0, f64::NAN, 4.0].into_iter().zip(expected) {
        smoothed.add(value);
        assert!((smoothed.get().unwrap() - expected).abs() < 1e-12);
    }
}

#[test]
fn the_line_of_progress_tells_loss_rate_pace_time_and_memory() {
    let mut progress = Progress::new(1200);
    let line = progress.line(&Record {
        loss: 0.05231,
        step_seconds: 1.24,
        ..record(120)
    });
    assert_eq!(
        line,
        "step 120/1200  loss 0.0523  lr 3.00e-5  1.24 s/step  22 min left  1.0 GiB"
    );
    let spans = [
        (1, 5.0, "5 s left"),
        (1, 600.0, "10 min left"),
        (60, 185.0, "3 h 05 min left"),
        (1000, 187.2, "2 d 04 h left"),
    ];
    for (steps, step_seconds, expected) in spans {
        let line = Progress::new(steps).line(&Record {
            step_seconds,
            ..record(0)
        });
        assert!(line.contains(expected), "{line}");
    }
    let line = Progress::new(5).line(&Record {
        loss: f64::NAN,
        step_seconds: 0.0123,
        peak_memory_bytes: None,
        skipped: Some(2),
        ..record(5)
    });
    assert_eq!(line, "step 5/5  loss not finite  lr 3.00e-5  12.3 ms/step  2 skipped");
}

pub fn facts() -> Facts {
    Facts {
        name: "disney".into(),
        base_model: "THUDM/CogVideoX1.5-5B".into(),
        base_form: Some("nf4".into()),
        transformer: None,
        pipeline: "CogVideoXPipeline".into(),
        lora_loading: LoraLoading::Pipeline,
        tiles_only: false,
        task: Task::TextToVideo,
        frame_rate: 25.0,
        num_clips: 69,
        trigger_words: vec!["BW_STYLE".into()],
        rank: 128,
        alpha: 64.0,
        target_modules: vec!["to_q".into(), "to_out.0".into()],
        steps: 1200,
        lr: 3e-5,
        batch_size: 4,
        samples: vec![Sample {
            prompt: "A red ball".into(),
            path: "validation/step-001200/00-a-red-ball.mp4".into(),
        }],
    }
}

/// The front matter as YAML.
fn front_matter(card: &str) -> serde_json::Value {
    let rest = card.strip_prefix("---\n").unwrap();
    let (yaml, _) = rest.split_once("\n---\n").unwrap();
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

#[test]
fn the_model_card_says_what_the_hub_and_people_ask_for() {
    let card = facts().card();
    let front = front_matter(&card);
    assert_eq!(front["base_model"], "THUDM/CogVideoX1.5-5B");
    assert_eq!(front["library_name"], "diffusers");
    assert_eq!(front["instance_prompt"], "BW_STYLE");
    let tags = front["tags"].as_array().unwrap();
    for tag in ["lora", "text-to-video", "template:diffusion-lora"] {
        assert!(tags.iter().any(|t| t == tag), "{tag}");
    }
    assert_eq!(front["widget"][0]["text"], "A red ball");
    assert_eq!(
        front["widget"][0]["output"]["url"],
        "validation/step-001200/00-a-red-ball.mp4"
    );
    for part in [
        "# disney\n",
        "[THUDM/CogVideoX1.5-5B](https://huggingface.co/THUDM/CogVideoX1.5-5B), trained on 69 clips",
        "Begin a prompt with **BW\\_STYLE**.",
        "| Rank | 128 |\n| Alpha | 64 |\n| Layers | to\\_q, to\\_out.0 |",
        "| Learning rate | 3e-5 |",
        "| Base model stored as | nf4 |",
        "- [A red ball](validation/step-001200/00-a-red-ball.mp4)",
        "pipe = CogVideoXPipeline.from_pretrained(\"THUDM/CogVideoX1.5-5B\"",
        "--lora pytorch_lora_weights.safetensors --prompt 'A red ball' --output video.mp4",
    ] {
        assert!(card.contains(part), "{part}\nis not in\n{card}");
    }
}

#[test]
fn what_is_not_known_is_not_in_the_card() {
    let card = Facts {
        base_model: "/home/me/models/cogvideox".into(),
        task: Task::ImageToVideo,
        num_clips: 1,
        trigger_words: Vec::new(),
        samples: Vec::new(),
        ..facts()
    }
    .card();
    let front = front_matter(&card);
    for key in ["base_model", "instance_prompt", "widget"] {
        assert!(front.get(key).is_none(), "{key}");
    }
    assert_eq!(front["pipeline_tag"], "image-to-video");
    assert!(card.contains("trained on one clip"));
    assert!(card.contains("image = load_image(\"first.png\")\n"));
    assert!(!card.contains("## Videos") && !card.contains("## Trigger words"));
}

/// `lora_peft` runs these lines.
#[test]
fn where_the_pipeline_loads_no_adapters_the_card_says_how_peft_does() {
    let (by_pipeline, lora_loading) = (facts().card(), LoraLoading::Peft);
    let tiles_only = true;
    let by_peft = Facts {
        lora_loading,
        tiles_only,
        ..facts()
    };
    let card = by_peft.card();
    for part in [
        "```python\nimport json\n\nimport torch\n",
        "from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict\n",
        "\npipe.vae.enable_tiling()\nwith safe_open(\"path/to/this/folder/pytorch_lora_weights.safetensors\", \"pt\") as file:\n    lora",
        "\ninject_adapter_in_model(LoraConfig(**settings), pipe.transformer)\n",
    ] {
        assert!(
            card.contains(part) && !by_pipeline.contains(part),
            "{part}\nis not in\n{card}"
        );
    }
    assert!(by_pipeline.contains("pipe.load_lora_weights(") && !card.contains("load_lora_weights"));
}

#[test]
fn another_transformer_is_in_the_card_with_the_call_that_loads_it() {
    let card = |path: &str| {
        let transformer = Some(OtherTransformer {
            path: path.into(),
            class: "WanTransformer3DModel".into(),
        });
        Facts { transformer, ..facts() }.card()
    };
    let gguf = card("/models/wan-Q4_K_M.gguf");
    for part in [
        "with the transformer wan-Q4\\_K\\_M.gguf, trained on",
        "import CogVideoXPipeline, GGUFQuantizationConfig, WanTransformer3DModel\n",
        "transformer = WanTransformer3DModel.from_single_file(\n    \"/models/wan-Q4_K_M.gguf\", config=\"THUDM/CogVideoX1.5-5B\"",
        "quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16)",
        ".from_pretrained(\"THUDM/CogVideoX1.5-5B\", transformer=transformer, torch_dtype",
        "--model 'THUDM/CogVideoX1.5-5B' --transformer '/models/wan-Q4_K_M.gguf' --lora",
    ] {
        assert!(gguf.contains(part), "{part}\nis not in\n{gguf}");
    }
    let single = card("/models/wan.safetensors");
    assert!(
        single.contains("from_single_file(") && !single.contains("GGUF"),
        "{single}"
    );
    let folder = card("/models/nf4");
    assert!(
        folder.contains("from_pretrained(\"/models/nf4\", torch_dtype"),
        "{folder}"
    );
}

#[test]
fn no_prompt_or_name_breaks_out_of_its_place_in_the_card() {
    let hostile = [
        "---\nevil: true\n---",
        "a: \"b\" # c\\",
        "```\n# Title\n```",
        "<script>alert(1)</script> & [x](y) | *z* ![i](j)",
        "'; rm -rf / #",
        "yes",
        "null",
        "tab\tbell\u{7}nel\u{85}ls\u{2028}bom\u{feff}end\u{ffff}",
        "ein Bär läuft 🐻",
        "",
    ];
    for text in hostile {
        let card = Facts {
            name: text.into(),
            base_model: text.into(),
            transformer: Some(OtherTransformer {
                path: text.into(),
                class: "WanTransformer3DModel".into(),
            }),
            trigger_words: vec![text.into()],
            target_modules: vec![text.into()],
            samples: vec![Sample {
                prompt: text.into(),
                path: format!("validation/{text}.mp4"),
            }],
            ..facts()
        }
        .card();
        let front = front_matter(&card);
        let shown = front["widget"][0]["text"].as_str().unwrap();
        assert_eq!(front["instance_prompt"], shown);
        let letters = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
        assert_eq!(letters(shown), letters(text));
        assert!(front.get("evil").is_none());
        let (_, body) = card.split_once("\n---\n").unwrap();
        let prose: Vec<&str> = body.split("\n```").step_by(2).collect();
        let prose = prose.join("\n");
        assert!(!prose.contains("<script>") && !prose.contains("](y)"), "{prose}");
        // Two fences around Python, two around the shell, and headings of our own only.
        assert_eq!(body.lines().filter(|line| line.starts_with("```")).count(), 4);
        assert_eq!(body.lines().filter(|line| line.starts_with("# ")).count(), 1);
        let shell = body.lines().find(|line| line.starts_with("vtrain sample")).unwrap();
        let quotes = shell.replace(r"'\''", "");
        assert_eq!(quotes.matches('\'').count(), 6, "{shell}");
    }
}
