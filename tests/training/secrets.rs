//! The Hub's token is never printed or written by a run, whatever its source and whatever fails.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::pushed::{Seen, TOKEN, serve};
use super::{FINAL, Run, model, shapes};

/// The loudest there is.
const LOUD: &str = "-vvvv";

/// A run of two steps with validation, pushed to a server that answers everything with a refusal that says the token.
fn run(model: &str) -> Run {
    let run = Run::new("");
    let data = run.folder.path().join("data");
    shapes(&data, 2);
    let text = format!(
        "output_dir: out\ndevice: cpu\nmodel: {{path: {model}, dtype: f32}}\n\
         datasets: [{{path: {}, buckets: [[9, 32, 48]]}}]\nlora: {{rank: 2}}\ntrain: {{steps: 2}}\n\
         checkpoint: {{every: 1, comfyui: true}}\n\
         validation: {{every: 2, prompts: [{{prompt: a ball, num_frames: 1, height: 32, width: 48, steps: 1}}]}}\n\
         hub: {{push: true, repo: somebody/style}}\n",
        data.display(),
    );
    fs::write(run.file(), text).unwrap();
    run
}

/// The run's command against this server, with caches below its folder and the token as is said.
fn asks(command: &mut Command, run: &Run, endpoint: &str, by_file: bool) -> Output {
    let home = run.folder.path().join("home");
    fs::create_dir_all(&home).unwrap();
    command
        .env("HF_ENDPOINT", endpoint)
        .env("HF_HOME", &home)
        .env("RUST_BACKTRACE", "1")
        .env("RUST_LOG", "trace")
        .env_remove("HF_TOKEN")
        .env_remove("HF_HUB_OFFLINE");
    match by_file {
        true => fs::write(home.join("token"), format!("{TOKEN}\n")).unwrap(),
        false => drop(command.env("HF_TOKEN", TOKEN)),
    }
    let output = command.output().unwrap();
    if by_file {
        fs::remove_file(home.join("token")).unwrap();
    }
    output
}

/// Checks that no file and no output has the token; returns the number of files.
fn keeps_it(run: &Run, output: &Output) -> usize {
    let has = |bytes: &[u8]| bytes.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes());
    for (name, text) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        assert!(!has(text), "{name}: {}", String::from_utf8_lossy(text));
    }
    let (mut waiting, mut looked_at) = (vec![run.folder.path().to_path_buf()], 0);
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
                continue;
            }
            assert!(!has(path.as_os_str().as_encoded_bytes()), "{}", path.display());
            assert!(!has(&fs::read(&path).unwrap()), "{} has the token", path.display());
            looked_at += 1;
        }
    }
    looked_at
}

fn refusing() -> Seen {
    Seen {
        refuses: Some(401),
        ..Seen::default()
    }
}

#[test]
fn no_file_and_no_line_of_a_run_and_its_failed_push_has_the_token() {
    for by_file in [false, true] {
        let (endpoint, seen) = serve(refusing());
        let run = run(model().to_str().unwrap());
        let output = asks(&mut run.command(&[LOUD]), &run, &endpoint, by_file);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(said.contains("was not pushed to somebody/style"), "{said}");
        {
            let seen = seen.lock().unwrap();
            assert!(
                !seen.asked.is_empty() && seen.unsigned.is_empty(),
                "the server was given it: {:?}",
                seen.asked
            );
        }
        let out = run.out();
        for name in [
            "config.yaml",
            "README.md",
            "index.html",
            "metrics.jsonl",
            "tensorboard",
            "precomputed",
            FINAL,
        ] {
            assert!(out.join(name).exists(), "{name}");
        }
        let files = keeps_it(&run, &output);
        assert!(files >= 20, "{files} files");

        let mut report = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        let output = asks(report.args([LOUD, "report"]).arg(&out), &run, &endpoint, by_file);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(keeps_it(&run, &output) >= files);
    }
}

#[test]
fn no_line_of_a_download_that_fails_has_the_token() {
    for by_file in [false, true] {
        for seen in [refusing(), Seen::default()] {
            let (endpoint, seen) = serve(seen);
            let run = run("somebody/style");
            let output = asks(&mut run.command(&[LOUD]), &run, &endpoint, by_file);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(4), "{said}");
            assert!(
                said.contains("somebody/style, revision main, on the Hugging Face Hub"),
                "{said}"
            );
            assert!(!seen.lock().unwrap().asked.is_empty());
            keeps_it(&run, &output);
        }
    }
    // Without a server.
    let run = run("somebody/style");
    let output = asks(&mut run.command(&[LOUD]), &run, "http://127.0.0.1:1", false);
    assert_eq!(output.status.code(), Some(4));
    keeps_it(&run, &output);
}

/// One that no header can carry is refused, and not shown either.
#[test]
fn a_token_that_is_none_is_not_shown() {
    let run = run("somebody/style");
    let broken = format!("{TOKEN}\u{1}\u{e9}{TOKEN}");
    let mut command = run.command(&[LOUD]);
    command.env("HF_HOME", run.folder.path().join("home"));
    let output = command
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .env("HF_TOKEN", broken)
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(4),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    keeps_it(&run, &output);
    assert!(!Path::new(&run.out()).join("config.yaml").exists());
}
