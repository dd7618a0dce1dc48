//! A run as a page: its contents, and the output of `vtrain report` for one run or several.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use vtrain::data::Bucket;
use vtrain::report::about::{About, Clip};
use vtrain::report::{self, Curves, Environment, Run};
use vtrain::run_dir::RunDir;
use vtrain::video::{Frames, write};

use crate::needs::python;

const CONFIG: &str = "\
output_dir: out
train: {steps: 3, epochs: null}
optimizer: {lr: 0.001}
datasets:
  - {path: clips, buckets: [[9, 32, 48]]}
validation:
  every: 2
  prompts:
    - {prompt: 'A red ball', num_frames: 5, height: 32, width: 48, steps: 2, guidance_scale: 6.0, seed: 7}
    - {prompt: '<b>100%</b> \"wild\"', num_frames: 5, height: 32, width: 48}
";

fn line(step: u64, loss: Option<f64>) -> String {
    let line = json!({"step": step, "loss": loss, "grad_norm": 0.5, "lr": 1e-3, "step_seconds": 0.25,
        "samples_seen": step, "peak_memory_bytes": 1 << 20});
    line.to_string() + "\n"
}

/// A run of three steps with two prompts, its base model's videos and those of step 2.
fn made_up(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.yaml"), CONFIG).unwrap();
    let log = line(1, Some(0.75)) + &line(2, None) + &line(3, Some(0.1));
    fs::write(folder.join("metrics.jsonl"), log).unwrap();
    let frames = Frames {
        data: (0..5 * 32 * 48 * 3).map(|i| (i % 251) as u8).collect(),
        num_frames: 5,
        height: 32,
        width: 48,
    };
    for step in ["000000", "000002"] {
        for name in ["00-a-red-ball", "01-b-100-b-wild"] {
            let path = folder.join(format!("validation/step-{step}/{name}.mp4"));
            write(&path, &frames, 8.0).unwrap();
        }
    }
    let clip = |name: &str, caption: &str| Clip {
        name: name.into(),
        caption: caption.into(),
        bucket: Bucket {
            frames: 9,
            height: 32,
            width: 48,
        },
        repeats: 1,
        fps: 8.0,
        thumbnail: Some("clips/none.jpg".into()),
    };
    let about = About {
        steps: 3,
        frame_rate: 8.0,
        environment: Environment(vec![("device".into(), "CPU".into())]),
        clips: vec![
            clip("a.mp4", "A ball"),
            clip("b.mp4", "</script><script>alert(1)</script><!--"),
        ],
    };
    about.write(&RunDir::new(folder)).unwrap();
}

fn html(folder: &Path) -> String {
    let run = Run::read(folder).unwrap();
    let from = run.folder.clone();
    report::html(&[run], &from).unwrap()
}

/// Returns the data of a page's script.
fn facts(html: &str) -> Value {
    let start = html.find("id=\"facts\">").unwrap() + "id=\"facts\">".len();
    let end = start + html[start..].find("</script>").unwrap();
    serde_json::from_str(&html[start..end]).unwrap()
}

fn vtrain(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
    command.arg("report").args(args).current_dir(folder).output().unwrap()
}

#[test]
fn a_page_holds_what_the_folder_tells() {
    let folder = tempfile::tempdir().unwrap();
    made_up(folder.path());
    let facts = facts(&html(folder.path()));
    let run = &facts["runs"][0];
    assert_eq!((&run["step"], &run["complete"]), (&json!(3), &json!(true)));
    assert_eq!(run["base"], "");
    assert_eq!(run["curves"]["step"], json!([1, 2, 3]));
    assert_eq!(run["curves"]["loss"], json!([0.75, null, 0.1f32]));
    assert_eq!(run["curves"]["seconds"], 0.75);
    let grid = &run["grid"];
    assert_eq!(grid["steps"], json!([0, 2]));
    let prompts: Vec<&Value> = grid["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["prompt"])
        .collect();
    assert_eq!(prompts, ["A red ball", "<b>100%</b> \"wild\""]);
    assert_eq!(
        grid["rows"][0]["videos"],
        json!([
            "validation/step-000000/00-a-red-ball.mp4",
            "validation/step-000002/00-a-red-ball.mp4"
        ])
    );
    assert_eq!(
        grid["rows"][0]["details"],
        "5 frames · 48×32 · 2 steps · guidance 6 · seed 7"
    );
    assert_eq!(run["clips"]["total"], 2);
    assert_eq!(run["clips"]["listed"][0]["bucket"], json!([9, 32, 48]));
    assert_eq!(
        run["clips"]["listed"][0]["picture"],
        Value::Null,
        "a picture that is not there is not named"
    );
    assert_eq!(run["environment"], json!([["device", "CPU"]]));
    let keys = run["settings"]["keys"].as_array().unwrap();
    for key in [
        ["optimizer.lr", "0.001"],
        ["datasets.0.path", "clips"],
        ["validation.prompts.0.seed", "7"],
    ] {
        assert!(keys.contains(&json!(key)), "{key:?} is not among {keys:?}");
    }
}

#[test]
fn a_page_needs_nothing_but_the_disk_and_text_in_it_stays_text() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("<i>{data}&");
    made_up(&folder);
    let html = html(&folder);
    assert_eq!(html.matches("</script").count(), 3, "the facts, uPlot, and our script");
    assert!(html.contains("<title>&lt;i&gt;{data}&amp; · vtrain</title>"));
    assert_eq!(
        facts(&html)["runs"][0]["clips"]["listed"][1]["caption"],
        "</script><script>alert(1)</script><!--"
    );
    assert!(html.contains("default-src 'none'"));
    for reach in [
        "src=\"http",
        "src='http",
        "href=\"http",
        "url(",
        "@import",
        "fetch(",
        "XMLHttpRequest",
        "innerHTML",
    ] {
        assert!(!html.contains(reach), "{reach}");
    }
}

#[test]
fn a_log_that_is_being_written_is_read_as_far_as_it_goes() {
    let whole =
        line(1, Some(0.5)) + &line(2, Some(f64::from(f32::MAX) * 2.0)) + "nonsense\n{}\n" + &line(2, Some(0.25));
    let curves = Curves::parse((whole.clone() + &line(3, Some(0.1))[..20]).as_bytes());
    assert_eq!((curves.logged, &curves.step[..]), (2, &[1, 2][..]));
    assert_eq!(curves.loss, [Some(0.5), Some(0.25)], "the later of two lines holds");
    for end in 0..whole.len() {
        Curves::parse(&whole.as_bytes()[..end]);
    }
    assert_eq!(Curves::parse(b"\xff\xfe\n\0"), Curves::default());
}

#[test]
fn a_long_log_is_thinned_without_losing_a_peak() {
    let loss = |step: u64| match step {
        40_001 => 9.0,
        60_002 => -9.0,
        step => (step % 10) as f64,
    };
    let log: String = (1..=100_000).map(|step| line(step, Some(loss(step)))).collect();
    let curves = Curves::parse(log.as_bytes());
    assert_eq!(curves.logged, 100_000);
    assert!(
        curves.step.len() <= 20_000 && curves.step.len() > 5_000,
        "{}",
        curves.step.len()
    );
    assert!(curves.step.is_sorted() && curves.step.last() == Some(&100_000));
    assert!(curves.step.contains(&60_002) && curves.loss.contains(&Some(-9.0)));
    let means = curves.means.unwrap().loss;
    let mut before = 0;
    let mut sum = 0.0;
    for (step, mean) in curves.step.iter().zip(means) {
        sum += f64::from(mean.unwrap()) * (step - before) as f64;
        before = *step;
    }
    let wanted: f64 = (1..=100_000).map(loss).sum();
    assert!((sum - wanted).abs() < 1.0, "{sum}, not {wanted}");
}

#[test]
fn a_run_that_has_just_begun_has_a_page() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.yaml"), "seed: [").unwrap();
    let run = &facts(&html(folder.path()))["runs"][0];
    assert_eq!(
        (&run["step"], &run["complete"], &run["clips"]),
        (&json!(0), &json!(false), &Value::Null)
    );
    fs::remove_file(folder.path().join("config.yaml")).unwrap();
    fs::write(folder.path().join("metrics.jsonl"), "").unwrap();
    fs::create_dir_all(folder.path().join("validation/step-000010")).unwrap();
    fs::create_dir_all(folder.path().join("validation/other")).unwrap();
    fs::write(folder.path().join("validation/step-000010/.vtrain-x.mp4"), "").unwrap();
    fs::write(folder.path().join("validation/step-000010/03-old prompt.mp4"), "").unwrap();
    let grid = &facts(&html(folder.path()))["runs"][0]["grid"];
    assert_eq!(grid["rows"].as_array().unwrap().len(), 1);
    assert_eq!(grid["rows"][0]["prompt"], "old prompt");
    assert_eq!(
        grid["rows"][0]["videos"],
        json!(["validation/step-000010/03-old%20prompt.mp4"])
    );
}

#[test]
fn report_makes_the_page_of_a_run_again() {
    let folder = tempfile::tempdir().unwrap();
    made_up(&folder.path().join("run"));
    let output = vtrain(folder.path(), &["run"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "run/index.html\n");
    let page = fs::read_to_string(folder.path().join("run/index.html")).unwrap();
    assert_eq!(facts(&page)["runs"][0]["name"], "run");
    assert!(vtrain(&folder.path().join("run"), &["."]).status.success());
}

#[test]
fn report_compares_runs_and_links_to_their_videos() {
    let folder = tempfile::tempdir().unwrap();
    made_up(&folder.path().join("a"));
    made_up(&folder.path().join("more/b c"));
    let read = |path: &str| facts(&fs::read_to_string(folder.path().join(path)).unwrap());
    let output = vtrain(folder.path(), &["a", "more/b c"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "report.html\n");
    let page = read("report.html");
    assert_eq!(
        (&page["runs"][0]["base"], &page["runs"][1]["base"]),
        (&json!("a/"), &json!("more/b%20c/"))
    );
    let output = vtrain(folder.path(), &["a", "more/b c", "--output", "pages/deep/both.html"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = read("pages/deep/both.html");
    assert_eq!(page["runs"][1]["base"], "../../more/b%20c/");
}

#[test]
fn a_folder_that_holds_no_run_is_one_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("empty")).unwrap();
    for (name, what) in [
        ("empty", "neither config.yaml nor metrics.jsonl"),
        ("gone", "no such folder"),
    ] {
        let output = vtrain(folder.path(), &[name]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.lines().count() == 1 && said.contains(what) && said.contains(name),
            "{said}"
        );
    }
    assert_eq!(vtrain(folder.path(), &[]).status.code(), Some(2));
}

/// Looks at a page in a browser.
pub fn look_at(page: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/checks/check_page.py");
    let output = Command::new(python()).arg(script).arg(page).output().unwrap();
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "needs browser: VTRAIN_PYTHON names a Python with playwright, and there is a chromium"]
fn a_browser_shows_runs_beside_each_other() {
    let folder = tempfile::tempdir().unwrap();
    made_up(&folder.path().join("a & b"));
    made_up(&folder.path().join("#c?"));
    fs::write(folder.path().join("#c?/metrics.jsonl"), line(1, Some(0.5))).unwrap();
    assert!(vtrain(folder.path(), &["a & b", "#c?"]).status.success());
    look_at(&folder.path().join("report.html"));
}
