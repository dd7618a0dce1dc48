//! Many prompts in one call of `vtrain sample`, and what it does not do twice: parts are loaded once, texts embedded once, and what
//! an earlier call left is not made again. Single calls are the reference.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vtrain::video::{Clip, Frames, write};

use crate::training::{Run, model, root, shapes, stderr};

/// Steps and sizes of all clips that do not say otherwise.
const FLAGS: &str =
    "--num-frames 5 --height 32 --width 48 --steps 2 --guidance-scale 3 --fps 10 --dtype f32 --device cpu";

const TEXT_ENCODER: &str = "loading the text encoder";
const TRANSFORMER: &str = "loading the transformer";
const DECODER: &str = "loading the VAE's decoder";

/// A folder with a file of prompts.
struct Prompts {
    folder: tempfile::TempDir,
    file: PathBuf,
}

impl Prompts {
    fn new(name: &str, text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        Self { folder, file }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn command(&self, model: &Path, more: &[&str]) -> Command {
        let mut command = sample(model, more);
        command.arg("--prompts").arg(&self.file).arg("--output").arg(self.out());
        command
    }

    /// What a call says, on standard error and as JSON.
    fn run(&self, model: &Path, more: &[&str]) -> (String, Vec<Value>) {
        told(self.command(model, &[more, &["--json"]].concat()).output().unwrap())
    }

    fn clip(&self, name: &str) -> Vec<u8> {
        fs::read(self.out().join(name)).unwrap()
    }
}

/// A call with these flags, and with those of `FLAGS` that are not among them.
fn sample(model: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
    command.arg("sample").arg("--model").arg(model).args(more);
    let flags: Vec<&str> = FLAGS.split(' ').collect();
    for pair in flags.chunks(2).filter(|pair| !more.contains(&pair[0])) {
        command.args(pair);
    }
    command
}

fn told(output: Output) -> (String, Vec<Value>) {
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    let lines = String::from_utf8(output.stdout).unwrap();
    (
        said,
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
    )
}

/// The clip that a call for one prompt makes.
fn single(model: &Path, prompt: &str, more: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("clip.mp4");
    let mut command = sample(model, more);
    told(
        command
            .args(["--prompt", prompt, "--output"])
            .arg(&file)
            .output()
            .unwrap(),
    );
    fs::read(&file).unwrap()
}

fn count(said: &str, what: &str) -> usize {
    said.matches(what).count()
}

/// Names of the clips that a call made, and of those that it found.
fn made(told: &[Value]) -> (BTreeSet<&str>, BTreeSet<&str>) {
    let name = |told: &'_ Value| -> &str {
        told["output"]
            .as_str()
            .unwrap()
            .rsplit('/')
            .next()
            .unwrap()
            .to_string()
            .leak()
    };
    let (made, kept): (Vec<&Value>, Vec<&Value>) = told.iter().partition(|told| told["made"] == json!(true));
    (
        made.into_iter().map(name).collect(),
        kept.into_iter().map(name).collect(),
    )
}

#[test]
fn many_prompts_load_each_part_once_and_give_the_clips_of_single_calls() {
    let quick = "--seed 5 --num-frames 1 --steps 1 --guidance-scale 1";
    let quick: Vec<&str> = quick.split(' ').collect();
    let lines: Vec<String> = (0..21).map(|n| format!("a red ball, number {}", n % 7)).collect();
    let prompts = Prompts::new("prompts.txt", &format!("# seven texts\n\n{}\n", lines.join("\n")));
    let (said, told) = prompts.run(&model(), &quick);
    for part in [TEXT_ENCODER, TRANSFORMER, DECODER] {
        assert_eq!(count(&said, part), 1, "{part}: {said}");
    }
    assert_eq!(told.len(), 21);
    for (n, told) in told.iter().enumerate() {
        let name = format!("{n:02}-a-red-ball-number-{}.mp4", n % 7);
        assert!(told["output"].as_str().unwrap().ends_with(&name), "{told}");
        assert_eq!((&told["prompt"], &told["seed"]), (&json!(lines[n]), &json!(5)));
        assert_eq!((&told["made"], &told["frames"]), (&json!(true), &json!(1)));
        assert_eq!(told["steps"].as_array().unwrap().len(), 1);
    }
    for n in [0, 8] {
        let name = format!("{n:02}-a-red-ball-number-{}.mp4", n % 7);
        assert!(prompts.clip(&name) == single(&model(), &lines[n], &quick), "{name}");
    }
    let names: BTreeSet<String> = names(&prompts.out());
    assert_eq!(names.len(), 24, "{names:?}"); // with the manifest and two contact sheets
    let height = |n: usize| {
        Clip::open(&prompts.out().join(format!("contact-sheet-{n}.jpg")))
            .unwrap()
            .height()
    };
    assert_eq!([height(1), height(2)], [20 * 144, 144]);
    // A call with fewer clips leaves one sheet.
    fs::write(&prompts.file, &lines[0]).unwrap();
    let (said, _) = prompts.run(&model(), &quick);
    assert!(count(&said, TRANSFORMER) == 0 && height(1) == 144, "{said}");
    assert!(!prompts.out().join("contact-sheet-2.jpg").exists());
}

/// Names of the entries of a folder.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_prompt_may_have_settings_of_its_own_in_yaml_and_in_json_lines() {
    let yaml = "- a cube\n- prompt: a red ball\n  output: balls/red.webm\n  seed: 9\n  height: 48\n  width: 64\n\
        - {prompt: a red ball, negative_prompt: blue, num_frames: 9, steps: 3, guidance_scale: 4, fps: 20}\n";
    let lines = "\"a cube\"\n{\"prompt\": \"a red ball\", \"output\": \"balls/red.webm\", \"seed\": 9, \"height\": 48, \"width\": 64}\n\n\
        {\"prompt\": \"a red ball\", \"negative_prompt\": \"blue\", \"num_frames\": 9, \"steps\": 3, \"guidance_scale\": 4, \"fps\": 20}\n";
    let of_yaml = Prompts::new("prompts.yaml", yaml);
    let of_lines = Prompts::new("prompts.jsonl", lines);
    for prompts in [&of_yaml, &of_lines] {
        prompts.run(&model(), &[]);
    }
    for name in ["00-a-cube.mp4", "balls/red.webm", "02-a-red-ball.mp4"] {
        assert!(of_yaml.clip(name) == of_lines.clip(name), "{name}");
    }
    let own = "--negative-prompt blue --num-frames 9 --steps 3 --guidance-scale 4 --fps 20";
    let own: Vec<&str> = own.split(' ').collect();
    assert!(of_yaml.clip("00-a-cube.mp4") == single(&model(), "a cube", &[]));
    assert!(of_yaml.clip("02-a-red-ball.mp4") == single(&model(), "a red ball", &own));
    let clip = Clip::open(&of_yaml.out().join("balls/red.webm")).unwrap();
    assert_eq!((clip.height(), clip.width(), clip.num_frames()), (48, 64, 8));
}

#[test]
fn each_prompt_starts_from_its_own_image() {
    let model = root().join("tests/fixtures/cogvideox/cogvideox-5b-i2v");
    let prompts = Prompts::new("prompts.yaml", "");
    for gray in [40, 200] {
        let frames = Frames {
            data: vec![gray; 32 * 48 * 3],
            num_frames: 1,
            height: 32,
            width: 48,
        };
        write(&prompts.folder.path().join(format!("{gray}/")), &frames, 1.0).unwrap();
    }
    // Relative to the file.
    let text = "- {prompt: a ball, image: 40/00000.png}\n- {prompt: a ball, image: 200/00000.png}\n";
    fs::write(&prompts.file, text).unwrap();
    let (said, _) = prompts.run(&model, &[]);
    assert_eq!(count(&said, "loading the VAE's encoder"), 1, "{said}");
    for (name, gray) in [("00-a-ball.mp4", "40"), ("01-a-ball.mp4", "200")] {
        let image = prompts.folder.path().join(gray).join("00000.png");
        let alone = single(&model, "a ball", &["--image", image.to_str().unwrap()]);
        assert!(prompts.clip(name) == alone, "{name}");
    }
}

#[test]
fn clips_that_are_there_are_not_made_again_unless_their_request_changes() {
    let prompts = Prompts::new("prompts.yaml", "- a ball\n- a cube\n- a cone\n");
    let quick = ["--num-frames", "1", "--steps", "1"];
    let run = |more: &[&str]| prompts.run(&model(), &[&quick, more].concat());
    let all = ["00-a-ball.mp4", "01-a-cube.mp4", "02-a-cone.mp4"];
    let (said, first) = run(&[]);
    assert_eq!(made(&first).0, all.into());
    assert_eq!(count(&said, TRANSFORMER), 1);
    let (said, again) = run(&[]);
    assert_eq!(made(&again), (BTreeSet::new(), all.into()));
    for part in [TEXT_ENCODER, TRANSFORMER, DECODER] {
        assert_eq!(count(&said, part), 0, "{said}");
    }
    // Another seed, another text, and a clip that is gone.
    fs::write(&prompts.file, "- {prompt: a ball, seed: 9}\n- a cube\n- a cone\n").unwrap();
    assert_eq!(made(&run(&[]).1).0, [all[0]].into());
    fs::write(&prompts.file, "- {prompt: a ball, seed: 9}\n- a tube\n- a cone\n").unwrap();
    assert_eq!(made(&run(&[]).1).0, ["01-a-tube.mp4"].into());
    fs::remove_file(prompts.out().join(all[2])).unwrap();
    assert_eq!(made(&run(&[]).1).0, [all[2]].into());
    // A clip that was cut off after it was written.
    fs::write(prompts.out().join(all[0]), b"cut off").unwrap();
    assert_eq!(made(&run(&[]).1).0, [all[0]].into());
    // Back to the first text: its clip is still there.
    fs::write(&prompts.file, "- {prompt: a ball, seed: 9}\n- a cube\n- a cone\n").unwrap();
    assert_eq!(made(&run(&[]).1), (BTreeSet::new(), all.into()));
    // What the flags say counts as well, an adapter by its content.
    let (_, told) = run(&["--guidance-rule", "apg"]);
    assert_eq!(made(&told).0, all.into());
    let adapter = prompts.folder.path().join("adapter.safetensors");
    fs::copy(fixture_adapter(), &adapter).unwrap();
    let lora = adapter.display().to_string();
    assert_eq!(made(&run(&["--lora", &lora]).1).0, all.into());
    assert_eq!(made(&run(&["--lora", &lora]).1).1, all.into());
    let half = format!("{lora}=0.5");
    assert_eq!(made(&run(&["--lora", &half]).1).0, all.into());
    assert!(prompts.clip(all[1]) == single(&model(), "a cube", &[&quick[..], &["--lora", &half]].concat()));
}

fn fixture_adapter() -> PathBuf {
    root().join("tests/fixtures/cogvideox/lora/pytorch_lora_weights.safetensors")
}

#[test]
fn a_call_that_was_killed_goes_on_and_ends_as_one_that_was_not() {
    let texts: Vec<String> = (0..6).map(|n| format!("a ball, number {n}")).collect();
    let whole = Prompts::new("prompts.txt", &texts.join("\n"));
    whole.run(&model(), &[]);
    let prompts = Prompts::new("prompts.txt", &texts.join("\n"));
    let denoised = || {
        fs::read_dir(prompts.out().join(".denoised"))
            .into_iter()
            .flatten()
            .count()
    };
    let clips = || {
        let there = names(&prompts.out());
        there
            .iter()
            .filter(|name| !name.starts_with('.') && name.ends_with(".mp4"))
            .count()
    };
    // While it denoises; and while it decodes.
    let moments: [&dyn Fn() -> bool; 2] = [&|| denoised() >= 3, &|| prompts.out().exists() && clips() >= 2];
    for moment in moments {
        let mut child = prompts
            .command(&model(), &["-q"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Instant::now();
        while !moment() && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(120));
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for name in names(&prompts.out()).iter().filter(|name| name.ends_with(".mp4")) {
            assert!(
                name.starts_with('.') || prompts.clip(name) == whole.clip(name),
                "{name}"
            );
        }
    }
    let (said, told) = prompts.run(&model(), &[]);
    assert_eq!(count(&said, TRANSFORMER), 0, "all were denoised: {said}");
    assert_eq!(told.len(), 6);
    assert_eq!(names(&prompts.out()), names(&whole.out()));
    for name in names(&whole.out()).iter().filter(|name| *name != "clips.json") {
        assert!(prompts.clip(name) == whole.clip(name), "{name}");
    }
}

#[test]
fn what_is_wrong_with_prompts_is_told_by_line_and_key_all_at_once() {
    let refused = |name: &str, text: &str, code: i32| {
        let prompts = Prompts::new(name, text);
        let output = prompts.command(&model(), &[]).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        said.replace(&prompts.file.display().to_string(), "FILE")
    };
    let all = "- prompt: a ball\n  sead: 3\n  steps: 0\n- {prompt: '', output: a.mp4}\n- 7\n- {prompt: x, seed: many, output: ../a.mp4}\n\
        - {prompt: x, output: a.mp4}\n- {prompt: x, output: a.png}\n- {prompt: x, sigmas: [1.0], timesteps: [900]}\n";
    let said = refused("prompts.yaml", all, 2);
    for line in [
        "FILE:2: sead: unknown key; did you mean 'seed'?",
        "FILE:3: steps: must be at least 1, got 0",
        "FILE:4: prompt: must not be empty",
        "FILE:5: is no prompt",
        "FILE:6: seed: expected a whole number of at least 0, found the text \"many\"",
        "FILE:6: output: '../a.mp4' must be a path below --output",
        "FILE:7: output: a.mp4 is the clip of line 4",
        "FILE:8: output: 'a.png' must end in .mp4, .webm or .gif",
        "FILE:9: timesteps: give either sigmas or timesteps",
    ] {
        assert!(said.contains(line), "{said}\n does not say\n{line}");
    }
    let said = refused(
        "prompts.jsonl",
        "{\"prompt\": \"x\"\n{\"prompt\": \"x\", \"fps\": -1}\n[]\n",
        2,
    );
    for line in [
        "FILE:1: EOF while parsing",
        "FILE:2: fps: must be above 0, got -1",
        "FILE:3: is no prompt",
    ] {
        assert!(said.contains(line), "{said}\n does not say\n{line}");
    }
    for (name, text, line) in [
        ("prompts.txt", "# nothing\n\n", "FILE: has no prompt"),
        ("prompts.yaml", "prompt: a ball\n", "FILE: is no list"),
        ("prompts.yaml", "- prompt: [\n", "FILE:"),
    ] {
        let said = refused(name, text, 2);
        assert!(said.contains(line), "{said}\n does not say\n{line}");
    }
    // What the checkpoint cannot make is told by line as well.
    let said = refused(
        "prompts.yaml",
        "- a ball\n- {prompt: a ball, height: 33}\n- {prompt: a ball, width: 40}\n",
        4,
    );
    for line in ["FILE:2: ", "FILE:3: "] {
        assert!(said.contains(line), "{said}\n does not say\n{line}");
    }
}

#[test]
fn the_contact_sheet_has_a_row_a_clip_from_its_first_picture_to_its_last() {
    let prompts = Prompts::new(
        "prompts.yaml",
        "- {prompt: a ball, seed: 3}\n- {prompt: a cube, seed: 4, height: 48}\n",
    );
    prompts.run(&model(), &[]);
    let sheet = Clip::open(&prompts.out().join("contact-sheet-1.jpg")).unwrap();
    assert_eq!((sheet.height(), sheet.width()), (2 * 144, 4 * 256));
    let pixels = sheet.decode(&[0]).unwrap().data;
    let mean = |top: usize, left: usize| {
        let rows = (top..top + 144).flat_map(|row| &pixels[(row * 1024 + left) * 3..][..256 * 3]);
        rows.map(|&byte| f64::from(byte)).sum::<f64>() / (144.0 * 256.0 * 3.0)
    };
    for (row, name) in ["00-a-ball.mp4", "01-a-cube.mp4"].into_iter().enumerate() {
        let clip = Clip::open(&prompts.out().join(name)).unwrap();
        for (column, frame) in [0, 2, 4, 7].into_iter().enumerate() {
            let frame = clip.decode(&[frame]).unwrap().data;
            let expected = frame.iter().map(|&byte| f64::from(byte)).sum::<f64>() / frame.len() as f64;
            let found = mean(row * 144, column * 256);
            assert!((found - expected).abs() < 4.0, "{name} {column}: {found} {expected}");
        }
    }
}

/// A run of one step with a validation prompt.
fn trained() -> Run {
    let run = Run::new("");
    shapes(&run.folder.path().join("data"), 1);
    let text = format!(
        "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
         datasets: [{{path: data, buckets: [[5, 32, 48]]}}]\nlora: {{rank: 2, alpha: 2}}\ntrain: {{steps: 1}}\n\
         validation: {{every: 1, prompts: [{{prompt: a red ball, num_frames: 5, height: 32, width: 48, steps: 2}}]}}\n",
        model().display(),
    );
    fs::write(run.file(), text).unwrap();
    run.train(&[]);
    run
}

#[test]
fn a_prompt_that_a_run_embedded_is_not_embedded_again() {
    let run = trained();
    let adapter = run.out().join("pytorch_lora_weights.safetensors").display().to_string();
    let cache = run.out().join("precomputed").display().to_string();
    let prompts = Prompts::new("prompts.txt", "a red ball\n");
    // Both prompts of a clip are of the run: that of validation, and the empty one. Its cache is found by the adapter.
    let (said, _) = prompts.run(&model(), &["--lora", &adapter]);
    assert_eq!(
        (count(&said, TEXT_ENCODER), count(&said, TRANSFORMER)),
        (0, 1),
        "{said}"
    );
    let plain = run.folder.path().join("adapter.safetensors");
    fs::copy(&adapter, &plain).unwrap();
    let plain = plain.display().to_string();
    assert!(prompts.clip("00-a-red-ball.mp4") == single(&model(), "a red ball", &["--lora", &plain]));
    // A new one is added to it, for the next call.
    let says = |expected: usize, prompt: &str, more: &[&str]| {
        let file = prompts.folder.path().join("clip.mp4");
        let mut command = sample(&model(), more);
        command.args(["--prompt", prompt, "--output"]).arg(&file);
        let (said, _) = told(command.output().unwrap());
        assert_eq!(count(&said, TEXT_ENCODER), expected, "{said}");
        fs::read(&file).unwrap()
    };
    let first = says(1, "a new prompt", &["--text-cache", &cache]);
    assert!(first == says(0, "a new prompt", &["--text-cache", &cache]));
    assert!(first == says(1, "a new prompt", &[]));
    // A number format of its own is another embedding.
    says(
        1,
        "a red ball",
        &["--text-cache", &cache, "--text-encoder-quantization", "int8"],
    );
}

#[test]
fn a_run_that_resumes_does_not_embed_its_validation_prompts_again() {
    let run = trained();
    let output = run.train(&["--set", "train.steps=2"]);
    let said = stderr(&output);
    assert_eq!(count(&said, TEXT_ENCODER), 0, "{said}");
    assert!(run.out().join("validation/step-000002/00-a-red-ball.mp4").exists());
}

#[test]
fn a_comparison_shows_the_plain_clip_beside_the_cached_one_and_tells_their_difference() {
    let model = fixture_wan();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let clip = |name: &str, more: &[&str]| {
        let mut command = sample(&model, more);
        command.args(["--prompt", "a red ball", "--output"]).arg(path(name));
        told(command.output().unwrap())
    };
    let frames = |name: &str| -> Vec<Vec<u8>> {
        let picture = |n: usize| path(name).join(format!("{n:05}.png"));
        (0..5)
            .map(|n| Clip::open(&picture(n)).unwrap().decode(&[0]).unwrap().data)
            .collect()
    };
    let cache = "taylorseer:interval=2,order=0,before=1";
    clip("plain/", &[]);
    clip("cached/", &["--cache", cache]);
    let (said, told) = clip("both/", &["--cache", cache, "--compare", "--json"]);
    let (mut squares, mut count) = (0.0, 0.0);
    for ((plain, cached), both) in frames("plain/").iter().zip(frames("cached/")).zip(frames("both/")) {
        let rows = plain.chunks(48 * 3).zip(cached.chunks(48 * 3));
        assert!(rows.flat_map(|(left, right)| [left, right].concat()).eq(both));
        let differences = plain
            .iter()
            .zip(&cached)
            .map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
        squares += differences.sum::<f64>();
        count += plain.len() as f64;
    }
    let psnr = 10.0 * (255.0f64.powi(2) * count / squares).log10();
    let [told] = &told[..] else { panic!("{told:?}") };
    assert!((told["psnr"].as_f64().unwrap() - psnr).abs() < 1e-9, "{told} {psnr}");
    assert!(said.contains(&format!("PSNR {psnr:.1} dB")), "{said}");
    let works = |side: &str| -> Vec<&str> {
        let steps = told[side]["steps"].as_array().unwrap();
        steps.iter().map(|step| step["positive"].as_str().unwrap()).collect()
    };
    assert_eq!(works("plain"), ["computed"; 2]);
    assert_eq!(works("cached"), ["computed", "reused"]);
    assert!(
        ["plain", "cached"]
            .iter()
            .all(|side| told[side]["seconds"].as_f64().unwrap() > 0.0)
    );
    // Without a difference there is no number; without a cache there is nothing to compare.
    let (said, told) = clip("same/", &["--cache", "taylorseer:interval=1", "--compare", "--json"]);
    assert!(told[0]["psnr"].is_null() && said.contains("the same frames"), "{said}");
    let mut command = sample(&model, &[]);
    command
        .args(["--prompt", "x", "--output"])
        .arg(path("none.mp4"))
        .arg("--compare");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--compare needs a --cache"));
}

fn fixture_wan() -> PathBuf {
    root().join("tests/fixtures/wan/wan-2.1-t2v")
}
