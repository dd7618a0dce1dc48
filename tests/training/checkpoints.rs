//! A killed run resumes as if nothing had happened.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{FINAL, Run, model, shapes, stderr};
use crate::needs::python;

/// Twenty steps with a checkpoint every five, a moving average, dropout and caption dropout: all that has a state.
fn twenty(more: &str) -> Run {
    let run = Run::new("");
    let data = run.folder.path().join("data");
    shapes(&data, 6);
    let text = format!(
        "output_dir: out\nseed: 3\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
         datasets: [{{path: {}, buckets: [[9, 64, 96]]}}]\n\
         lora: {{rank: 4, alpha: 8, dropout: 0.1}}\n\
         train: {{steps: 20, batch_size: 2, gradient_accumulation_steps: 2, caption_dropout: 0.3}}\n\
         optimizer: {{lr: 0.001, ema: 0.9}}\nlr_scheduler: {{name: cosine, warmup_steps: 2}}\n\
         checkpoint: {{every: 5, limit: 2}}\n{more}",
        model().display(),
        data.display()
    );
    fs::write(run.file(), text).unwrap();
    run
}

/// Starts a run and waits until its log has so many lines.
fn until(run: &Run, steps: usize) -> Child {
    until_with(run, steps, &[])
}

/// The same, with these arguments.
fn until_with(run: &Run, steps: usize, more: &[&str]) -> Child {
    let mut child = run.command(more).stderr(Stdio::piped()).spawn().unwrap();
    let log = run.out().join("metrics.jsonl");
    let started = Instant::now();
    while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < steps {
        assert!(
            started.elapsed() < Duration::from_secs(600),
            "the run does not come to step {steps}"
        );
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the run ended before step {steps}: {status}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(done.success());
}

/// Returns the log without timings.
fn without_times(run: &Run) -> Vec<Value> {
    let mut lines = run.metrics();
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        assert!(line.remove("step_seconds").is_some());
        assert!(line.remove("peak_memory_bytes").is_some());
    }
    lines
}

fn assert_equal(interrupted: &Run, straight: &Run) {
    assert_eq!(without_times(interrupted), without_times(straight));
    let bytes = |run: &Run, file: &str| fs::read(run.out().join(file)).unwrap();
    assert!(
        bytes(interrupted, FINAL) == bytes(straight, FINAL),
        "the adapters differ"
    );
    for file in [FINAL, "optimizer.safetensors"] {
        let file = format!("checkpoints/step-000020/{file}");
        assert!(bytes(interrupted, &file) == bytes(straight, &file), "{file} differs");
    }
}

#[test]
fn a_run_interrupted_and_killed_equals_one_that_was_left_alone_byte_for_byte() {
    let straight = twenty("");
    straight.train(&[]);

    let run = twenty("");
    let child = until(&run, 7);
    signal(&child, "-TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("continues from there"), "{}", stderr(&output));
    let at = run.metrics().len();
    assert!(run.out().join(format!("checkpoints/step-{at:06}/state.json")).is_file());

    let mut child = until(&run, 13);
    signal(&child, "-KILL");
    child.wait().unwrap();
    run.train(&[]);
    assert_eq!(run.column("step"), (1..=20).map(f64::from).collect::<Vec<_>>());
    assert_equal(&run, &straight);
}

/// Six steps over weights in few bits, with moments in 8 bits of every matrix A.
const IN_FEW_BITS: [&str; 18] = [
    "--set",
    "train.steps=6",
    "--set",
    "train.batch_size=1",
    "--set",
    "train.gradient_accumulation_steps=1",
    "--set",
    "checkpoint.every=2",
    "--set",
    "lora.rank=128",
    "--set",
    "lora.init=residual",
    "--set",
    "model.quantization=nf4",
    "--set",
    "model.quantization_cache=none",
    "--set",
    "optimizer.name=adamw8bit",
];

#[test]
fn a_killed_run_in_few_bits_with_moments_in_8_bits_resumes_as_if_nothing_had_happened() {
    let straight = twenty("");
    let output = straight.train(&IN_FEW_BITS);
    let said = "lora.init: residual: the weights of 8 layers are off by 0.0";
    assert_eq!(stderr(&output).matches(said).count(), 1, "{}", stderr(&output));

    let fresh = twenty("");
    let mut child = until_with(&fresh, 3, &IN_FEW_BITS);
    signal(&child, "-KILL");
    child.wait().unwrap();
    let output = fresh.train(&IN_FEW_BITS);
    assert!(!stderr(&output).contains("lora.init: residual"), "{}", stderr(&output));
    assert!(stderr(&output).contains("continuing from"), "{}", stderr(&output));
    assert_eq!(without_times(&fresh), without_times(&straight));
    let bytes = |run: &Run, file: &str| fs::read(run.out().join(file)).unwrap();
    for file in [FINAL, "optimizer.safetensors"] {
        let file = format!("checkpoints/step-000006/{file}");
        assert!(bytes(&fresh, &file) == bytes(&straight, &file), "{file} differs");
    }

    // The form of the base is in every adapter that leaves the run.
    for file in [FINAL.to_string(), format!("checkpoints/step-000006/{FINAL}")] {
        let adapter = bytes(&straight, &file);
        let (_, header) = safetensors::SafeTensors::read_metadata(&adapter).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["vtrain.base_form"], "nf4", "{file}");
    }
    let card = String::from_utf8(bytes(&straight, "README.md")).unwrap();
    assert!(card.contains("nf4"), "{card}");

    // What is in the file, and who may go on with it.
    let moments = bytes(&straight, "checkpoints/step-000006/optimizer.safetensors");
    let (_, header) = safetensors::SafeTensors::read_metadata(&moments).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["optimizer"], "adamw8bit");
    let tensors = safetensors::SafeTensors::deserialize(&moments).unwrap();
    let codes = tensors
        .iter()
        .filter(|(_, tensor)| tensor.dtype() == safetensors::Dtype::U8);
    assert!(codes.count() >= 16, "{:?}", tensors.names());
    let output = { straight.command(&IN_FEW_BITS[..IN_FEW_BITS.len() - 2]) }
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let said = "optimizer.name: \"adamw8bit\" in the checkpoint, \"adamw\" now";
    assert!(stderr(&output).contains(said), "{}", stderr(&output));
}

/// Every scalar at every step, none twice, as TensorBoard's own reader sees it. `tests/watching.rs` holds the same without.
#[test]
#[ignore = "needs python: VTRAIN_PYTHON names one with what scripts/setup/requirements.txt lists"]
fn tensorboard_sees_every_step_of_a_killed_and_resumed_run_once() {
    let run = twenty("");
    let mut child = until(&run, 7);
    signal(&child, "-KILL");
    child.wait().unwrap();
    run.train(&[]);
    let script = super::root().join("scripts/checks/check_tensorboard.py");
    let output = Command::new(python()).arg(script).arg(run.out()).output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (one, three) = (twenty(""), twenty(""));
    for (run, threads) in [(&one, "1"), (&three, "3")] {
        let output = run.command(&[]).env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_equal(&one, &three);
}

#[test]
fn a_changed_setting_is_refused_with_the_difference_and_never_starts_anew_beside_it() {
    let run = twenty("");
    run.train(&[
        "--set",
        "train.steps=6",
        "--set",
        "lr_scheduler.name=constant_with_warmup",
    ]);
    let refused = run.command(&[
        "--set",
        "optimizer.lr=0.002",
        "--set",
        "lr_scheduler.name=constant_with_warmup",
    ]);
    let output = { refused }.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(
        said.contains("optimizer.lr: 0.001 in the checkpoint, 0.002 now"),
        "{said}"
    );
    assert_eq!(run.metrics().len(), 6, "nothing was changed");

    // A flat schedule may be made longer; the run goes on.
    let longer = [
        "--set",
        "train.steps=8",
        "--set",
        "lr_scheduler.name=constant_with_warmup",
    ];
    run.train(&longer);
    assert_eq!(run.column("step"), (1..=8).map(f64::from).collect::<Vec<_>>());

    // A new start sets the old files aside.
    run.train(&[
        "--resume",
        "never",
        "--set",
        "train.steps=2",
        "--set",
        "optimizer.lr=0.002",
    ]);
    assert_eq!(run.metrics().len(), 2);
    let aside = fs::read_to_string(run.out().join("previous-1/metrics.jsonl")).unwrap();
    assert_eq!(aside.lines().count(), 8);
    assert!(run.out().join("previous-1").join(FINAL).is_file());
}

#[test]
fn a_changed_clip_or_model_is_refused_too() {
    let run = twenty("");
    run.train(&["--set", "train.steps=6", "--set", "lr_scheduler.name=constant"]);
    let caption = run.folder.path().join("data/prompt.txt");
    let text = fs::read_to_string(&caption).unwrap();
    fs::write(&caption, text.replacen('A', "Some", 1)).unwrap();
    let output = run.command(&["--set", "lr_scheduler.name=constant"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let told = stderr(&output);
    assert!(told.contains("data: has changed"), "{told}");
    let videos = fs::read_to_string(run.folder.path().join("data/videos.txt")).unwrap();
    let names: Vec<&str> = videos.lines().collect();
    assert!(
        told.contains(&format!("{}: its caption has changed", names[0])),
        "{told}"
    );
    assert!(!told.contains(names[1]), "{told}");
}

#[test]
fn a_changed_data_set_is_refused_with_the_clips_that_have_changed() {
    let run = twenty("");
    let flat = [
        "--set",
        "train.steps=2",
        "--set",
        "lr_scheduler.name=constant",
        "--set",
        "checkpoint.every=2",
    ];
    run.train(&flat);
    let data = run.folder.path().join("data");
    let read = |name: &str| fs::read_to_string(data.join(name)).unwrap();
    let (videos, prompts) = (read("videos.txt"), read("prompt.txt"));
    let names: Vec<&str> = videos.lines().collect();
    // The first clip is gone, the second another.
    let mut clip = fs::read(data.join(names[1])).unwrap();
    clip.extend([0, 0, 0, 8, b'f', b'r', b'e', b'e']);
    fs::write(data.join(names[1]), clip).unwrap();
    let without_first = |text: &str| text.lines().skip(1).collect::<Vec<_>>().join("\n");
    fs::write(data.join("videos.txt"), without_first(&videos)).unwrap();
    fs::write(data.join("prompt.txt"), without_first(&prompts)).unwrap();
    let output = run.command(&flat).output().unwrap();
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains(&format!("{}: is gone", names[0])), "{told}");
    assert!(
        told.contains(&format!("{}: the clip is different, or selected differently", names[1])),
        "{told}"
    );
    assert!(!told.contains(names[2]), "{told}");
}

#[test]
fn a_damaged_checkpoint_is_told_of_and_the_one_before_is_taken() {
    let (run, straight) = (twenty(""), twenty(""));
    straight.train(&[]);
    let mut child = until(&run, 12);
    signal(&child, "-KILL");
    child.wait().unwrap();
    let newest = run.out().join("checkpoints/step-000010/optimizer.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&newest, bytes).unwrap();
    let output = run.train(&[]);
    assert!(stderr(&output).contains("step-000010"), "{}", stderr(&output));
    assert!(stderr(&output).contains("after step 5"), "{}", stderr(&output));
    assert_equal(&run, &straight);
}

#[test]
fn what_a_run_killed_before_its_last_rotation_left_goes_and_nothing_that_is_newer() {
    let run = twenty("");
    run.train(&["--set", "train.steps=10"]);
    let step = |step: u32| run.out().join(format!("checkpoints/step-{step:06}"));
    let copy = |from: u32, to: u32| {
        fs::create_dir(step(to)).unwrap();
        for file in fs::read_dir(step(from)).unwrap().map(|file| file.unwrap()) {
            fs::copy(file.path(), step(to).join(file.file_name())).unwrap();
        }
    };
    copy(5, 3); // before the newest two
    copy(10, 11); // not of this course: the run goes on from step 10
    let older = step(10);
    run.train(&["--set", "train.steps=10", "--resume", older.to_str().unwrap()]);
    assert_eq!([3, 5, 10, 11].map(|at| step(at).exists()), [false, true, true, true]);
}
