//! The page of a run: see `tests/report.rs` for its contents.

use std::fs;

use super::{Run, model, root, stderr};
use crate::report::look_at;

/// Four steps on the shipped clips, a video of the base model, one in the middle and one at the end.
fn run() -> Run {
    let run = Run::new("");
    let text = format!(
        "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
         datasets: [{{path: {}, buckets: [[17, 64, 96], [33, 64, 96]]}}]\n\
         lora: {{rank: 4, alpha: 4}}\ntrain: {{steps: 4}}\nlr_scheduler: {{name: constant}}\n\
         validation:\n  every: 2\n  prompts:\n    \
         - {{prompt: 'A red ball: it rolls', num_frames: 9, height: 32, width: 48, steps: 2}}\n    \
         - {{prompt: a sun, num_frames: 17, height: 32, width: 48, steps: 1}}\n",
        model().display(),
        root().join("datasets/shapes").display()
    );
    fs::write(run.file(), text).unwrap();
    run
}

#[test]
fn a_run_leaves_a_page_with_its_curves_videos_and_clips() {
    let run = run();
    let secret = "hf_never_to_be_told";
    let output = run.command(&[]).env("HF_TOKEN", secret).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("the page is "), "{}", stderr(&output));
    let page = fs::read_to_string(run.out().join("index.html")).unwrap();
    let clips = fs::read_to_string(root().join("datasets/shapes/videos.txt"))
        .unwrap()
        .lines()
        .count();
    let pictures = || fs::read_dir(run.out().join("report/clips")).unwrap().count();
    assert_eq!(pictures(), clips);
    assert_eq!(page.matches("\"picture\":\"report/clips/").count(), clips);
    for told in [
        "\"step\":[1,2,3,4]",
        "\"steps\":[0,2,4]",
        "\"complete\":true",
        "\"device\",\"CPU\"",
    ] {
        assert!(page.contains(told), "{told}");
    }
    let about = fs::read_to_string(run.out().join("report/about.json")).unwrap();
    assert!(!page.contains(secret) && !about.contains(secret));
    // A new start takes the old page along with what it shows.
    run.train(&[
        "--resume",
        "never",
        "--set",
        "train.steps=1",
        "--set",
        "validation.prompts=[]",
    ]);
    let old = run.out().join("previous-1");
    assert_eq!(fs::read_to_string(old.join("index.html")).unwrap(), page);
    assert!(old.join("report/about.json").is_file() && old.join("validation/step-000004").is_dir());
    assert_eq!(pictures(), clips);
}

#[test]
#[ignore = "needs browser: VTRAIN_PYTHON names a Python with playwright, and there is a chromium"]
fn a_browser_shows_the_page_of_a_run() {
    let run = run();
    run.train(&[]);
    look_at(&run.out().join("index.html"));
}

#[test]
fn a_page_that_cannot_be_written_does_not_end_the_run() {
    let run = run();
    let few = ["--set", "validation.prompts=[]", "--set"];
    run.train(&[&few[..], &["train.steps=2"]].concat());
    fs::remove_file(run.out().join("index.html")).unwrap();
    fs::create_dir_all(run.out().join("index.html/in the way")).unwrap();
    fs::remove_dir_all(run.out().join("report")).unwrap();
    fs::write(run.out().join("report"), "in the way, too").unwrap();
    let said = stderr(&run.train(&[&few[..], &["train.steps=4"]].concat()));
    assert!(said.contains("the page will lack the clips"), "{said}");
    assert!(said.contains("the page is not written, training goes on"), "{said}");
    assert_eq!(run.metrics().len(), 4);
}
