//! A run that is killed again and again, at instants drawn from a fixed seed, ends like an uninterrupted one.
//!
//! `VTRAIN_KILLS=300 cargo test crash::kills -- --nocapture` for more than the 12 of every day.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use super::{ADAPTER, Run, files_below, record};

const STEPS: usize = 12;
const OWN: &str = "lora: {rank: 2, alpha: 4, dropout: 0.1}\n\
    train: {steps: 12, batch_size: 2, caption_dropout: 0.3}\n\
    optimizer: {lr: 0.001, ema: 0.9}\nlr_scheduler: {name: cosine, warmup_steps: 2}\n\
    checkpoint: {every: 2, limit: 2, comfyui: true}\n\
    validation: {every: 4, prompts: [{prompt: a ball, num_frames: 9, height: 32, width: 48, steps: 2}]}\n";

/// SplitMix64: the instants of a seed are always the same.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Moments of a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// This share of an uninterrupted run's time has passed, in thousandths.
    Time(u64),
    /// A record is being written to the cache, and so many are there.
    Precompute(usize),
    /// So many lines are in the log.
    Log(usize),
    /// A checkpoint is being written.
    Checkpoint,
    /// There is one checkpoint more than are kept: the oldest is about to go.
    Rotation,
    /// A validation video is being written.
    Validation,
    /// The steps are done and a file is being written to the output folder itself.
    Export,
}

impl Moment {
    fn draw(draws: &mut Draws) -> Self {
        match draws.below(10) {
            0..=2 => Self::Time(draws.below(1000)),
            3 => Self::Precompute(draws.below(10) as usize),
            4 => Self::Log(1 + draws.below(STEPS as u64) as usize),
            5 => Self::Checkpoint,
            6 | 7 => Self::Rotation,
            8 => Self::Validation,
            _ => Self::Export,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Time(_) => "any time",
            Self::Precompute(_) => "precompute",
            Self::Log(_) => "log",
            Self::Checkpoint => "checkpoint",
            Self::Rotation => "rotation",
            Self::Validation => "validation",
            Self::Export => "export",
        }
    }

    fn has_come(self, run: &Run, started: Instant, whole: Duration) -> bool {
        let out = run.out();
        match self {
            Self::Time(share) => started.elapsed() >= whole * share as u32 / 1000,
            Self::Precompute(records) => {
                let cache = out.join("precomputed");
                let (clips, captions) = (entries(&cache.join("clips")), entries(&cache.join("captions")));
                let all = [clips, captions].concat();
                all.iter().any(|name| unfinished(name)) && all.len() > records
            }
            Self::Log(lines) => run.lines() >= lines,
            Self::Checkpoint => entries(&out.join("checkpoints")).iter().any(|name| unfinished(name)),
            Self::Rotation => {
                let there = entries(&out.join("checkpoints"));
                there.iter().filter(|name| name.starts_with("step-")).count() > 2
            }
            Self::Validation => entries(&out.join("validation")).iter().any(|round| {
                entries(&out.join("validation").join(round))
                    .iter()
                    .any(|name| unfinished(name))
            }),
            Self::Export => run.lines() == STEPS && entries(&out).iter().any(|name| unfinished(name)),
        }
    }
}

fn unfinished(name: &str) -> bool {
    name.starts_with(".vtrain-")
}

fn entries(folder: &Path) -> Vec<String> {
    let there = fs::read_dir(folder).into_iter().flatten().flatten();
    there
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Kills the child at the moment and some microseconds; whether it lived to see it.
fn kill_at(moment: Moment, late: Duration, child: &mut Child, run: &Run, whole: Duration) -> bool {
    let started = Instant::now();
    while !moment.has_come(run, started, whole) {
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.code(), Some(0), "{moment:?}: {}", run.said());
            return false;
        }
        assert!(
            started.elapsed() < Duration::from_secs(600),
            "{moment:?}: the run hangs"
        );
        std::thread::sleep(Duration::from_micros(100));
    }
    std::thread::sleep(late);
    let living = child.try_wait().unwrap().is_none();
    if living {
        child.kill().unwrap();
    }
    let status = child.wait().unwrap();
    assert!(living || status.code() == Some(0), "{moment:?}: {}", run.said());
    living
}

/// Returns files that must be the same however often a run was killed: by path, the bytes.
fn kept(run: &Run) -> BTreeMap<String, Vec<u8>> {
    let out = run.out();
    let mut kept = BTreeMap::from([("metrics.jsonl".to_string(), run.metrics().into_bytes())]);
    for path in files_below(&out) {
        let name = path.strip_prefix(&out).unwrap().to_str().unwrap().to_string();
        let compared = name == ADAPTER
            || name == "comfyui_lora.safetensors"
            || [
                "checkpoints/",
                "validation/",
                "precomputed/clips/",
                "precomputed/captions/",
            ]
            .iter()
            .any(|folder| name.starts_with(folder));
        // `state.json` holds checksums of itself and of the others, which were compared in reading it.
        if compared && !name.ends_with("state.json") {
            let bytes = match name.starts_with("precomputed/") {
                true => record(&path),
                false => fs::read(&path).unwrap(),
            };
            kept.insert(name, bytes);
        }
    }
    kept
}

fn assert_same(run: &Run, straight: &BTreeMap<String, Vec<u8>>, life: usize) {
    let kept = kept(run);
    let names = |of: &BTreeMap<String, Vec<u8>>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&kept), names(straight), "life {life}");
    for (name, bytes) in &kept {
        assert!(*bytes == straight[name], "life {life}: {name} differs");
    }
    assert_eq!(run.checkpoints(), ["step-000010", "step-000012"], "life {life}");
}

#[test]
fn a_run_killed_at_random_instants_always_goes_on_and_ends_as_one_left_alone() {
    let kills: usize = std::env::var("VTRAIN_KILLS").map_or(12, |n| n.parse().unwrap());
    let straight = Run::new(OWN);
    let started = Instant::now();
    straight.finish();
    let whole = started.elapsed();
    let expected = kept(&straight);

    let mut draws = Draws(9);
    let (mut killed, mut lives) = (0, 0);
    let mut by_moment: BTreeMap<&str, usize> = BTreeMap::new();
    while killed < kills {
        lives += 1;
        let run = Run::new(OWN);
        // A life has few kills or many; then it may end.
        let mut left = 1 + draws.below(8);
        while left > 0 && killed < kills {
            let moment = Moment::draw(&mut draws);
            let late = Duration::from_micros([0, draws.below(500), draws.below(5_000)][draws.below(3) as usize]);
            let mut child = run.start();
            if !kill_at(moment, late, &mut child, &run, whole) {
                break; // it came to its end before
            }
            run.checkpoints();
            *by_moment.entry(moment.name()).or_default() += 1;
            (killed, left) = (killed + 1, left - 1);
        }
        run.finish();
        assert_same(&run, &expected, lives);
    }
    println!(
        "{killed} kills in {lives} runs, {:?} in all, an uninterrupted run {whole:?}; killed at {by_moment:?}",
        started.elapsed()
    );
}
