//! Problems that would fail late are reported before anything is loaded, all at once, by a run and by `--dry-run`
//! alike.

mod files;
mod hub;
mod settings;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::data::y4m;

fn fixtures(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn ltx() -> PathBuf {
    fixtures("ltx_video/ltx-0.9.5")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        match from.is_dir() {
            true => copy(&from, &to),
            false => drop(fs::copy(&from, &to).unwrap()),
        }
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// One clip and a valid run file.
struct Run {
    folder: TempDir,
}

impl Run {
    /// Run of this checkpoint, with `more` at the end of the run file.
    fn new(model: &Path, more: &str) -> Self {
        let run = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(run.path("data")).unwrap();
        run.add_clip("a");
        let text = format!(
            "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
             datasets: [{{path: data, buckets: [[17, 64, 96]]}}]\nprecompute: {{dir: cache}}\n\
             lora: {{rank: 4, alpha: 4}}\ntrain: {{steps: 1}}\n{more}",
            model.display()
        );
        fs::write(run.path("run.yaml"), text).unwrap();
        run
    }

    /// Run of a copy of the checkpoint, which a test may damage.
    fn of_copy(model: &Path, more: &str) -> Self {
        let run = Self::new(Path::new("./model"), more);
        copy(model, &run.path("model"));
        run
    }

    fn add_clip(&self, name: &str) {
        let mut clip = y4m(96, 64, 17, 8);
        let last = clip.len() - 1;
        clip[last] = name.as_bytes()[0]; // no clip is another
        fs::write(self.path(&format!("data/{name}.y4m")), clip).unwrap();
        fs::write(self.path(&format!("data/{name}.txt")), name).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, verb: &str, options: &[&str], sets: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        command
            .arg(verb)
            .arg("--config")
            .arg(self.path("run.yaml"))
            .args(options);
        command.args(sets.iter().flat_map(|set| ["--set", set]));
        command.env_remove("HF_TOKEN").env("HF_HOME", self.path("home"));
        command
    }

    fn vtrain(&self, verb: &str, options: &[&str], sets: &[&str]) -> Output {
        self.command(verb, options, sets).output().unwrap()
    }

    /// Returns the message of a dry run and of a run, which must be the same, with this exit code and without any
    /// output files.
    fn refused(&self, code: i32, sets: &[&str]) -> String {
        let (dry, real) = (
            self.vtrain("train", &["--dry-run"], sets),
            self.vtrain("train", &[], sets),
        );
        let (said, again) = (stderr(&dry), stderr(&real));
        assert_eq!(dry.status.code(), Some(code), "a dry run with {sets:?}: {said}");
        assert_eq!(real.status.code(), Some(code), "a run with {sets:?}: {again}");
        let errors = |said: &str| said.find("error: ").map(|at| said[at..].to_string());
        assert_eq!(errors(&said), errors(&again), "{sets:?}");
        assert!(!again.contains("loading the") && !again.contains("captions"), "{again}");
        for left in ["out", "cache/captions", "cache/clips"] {
            assert!(!self.path(left).exists(), "{sets:?} leaves {left}");
        }
        said
    }
}

/// `validation.prompts` of prompts with which all is well but for these keys.
fn prompts(each: &[&[(&str, &str)]]) -> String {
    let prompt = |keys: &&[(&str, &str)]| {
        let well = [
            ("prompt", "a ball"),
            ("num_frames", "9"),
            ("height", "64"),
            ("width", "96"),
            ("steps", "1"),
        ];
        let mut all = BTreeMap::from(well);
        all.extend(keys.iter().copied());
        let all: Vec<String> = all.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        format!("{{{}}}", all.join(", "))
    };
    let all: Vec<String> = each.iter().map(prompt).collect();
    format!("validation.prompts=[{}]", all.join(", "))
}
