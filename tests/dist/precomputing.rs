//! One cache, filled by several ranks.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Output;

use candle_core::{DType, Device};

use super::{Run, finish, stderr};

fn records(run: &Run, kind: &str) -> Vec<PathBuf> {
    let folder = fs::read_dir(run.path("cache").join(kind)).unwrap();
    folder.map(|entry| entry.unwrap().path()).collect()
}

fn precompute(run: &Run, ranks: usize, more: &[&str]) -> Output {
    let log = run.path("log");
    let options = ["--log-dir", log.to_str().unwrap()];
    finish(run.launch(ranks, &options, &["precompute", "-v"], more))
}

/// Clips that each rank says it encoded.
fn encoded(run: &Run, ranks: usize) -> Vec<Vec<String>> {
    let of = |rank: usize| {
        let path = run.path(&format!("log/none/attempt-0/{rank}/stderr.log"));
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("debug: encoded "));
        lines.map(String::from).collect()
    };
    (0..ranks).map(of).collect()
}

/// Puts nothing in place of a clip's later pictures: its header still says that they are there, and the first one, which the
/// survey decodes, is.
fn damage(run: &Run, place: usize) -> String {
    let mut clips: Vec<PathBuf> = fs::read_dir(run.path("data"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "mp4"))
        .collect();
    clips.sort();
    let mut bytes = fs::read(&clips[place]).unwrap();
    let at = bytes.windows(4).position(|name| name == b"mdat").unwrap();
    let length = u32::from_be_bytes(bytes[at - 4..at].try_into().unwrap()) as usize;
    bytes[at + length / 2..at - 4 + length].fill(0);
    fs::write(&clips[place], bytes).unwrap();
    clips[place].file_stem().unwrap().to_str().unwrap().to_string()
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs mpi: built without the feature")]
fn seven_clips_on_four_ranks_are_encoded_once_each() {
    let run = Run::new(7, "");
    let output = precompute(&run, 4, &["--json"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!((records(&run, "clips").len(), records(&run, "captions").len()), (7, 8));
    let each = encoded(&run, 4);
    assert_eq!(each.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2, 1]);
    let mut all = each.concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 7, "{all:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("rank 0 alone prints");
    assert_eq!(json["samples"].as_array().unwrap().len(), 7);

    // One process makes the same records, and finds these.
    let alone = Run::new(7, "");
    let alone_output = finish(alone.vtrain(&["precompute"], &[]));
    assert_eq!(alone_output.status.code(), Some(0));
    let by_name = |run: &Run| {
        let mut records = records(run, "clips");
        records.sort();
        records
            .iter()
            .map(|path| {
                let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
                let numbers = tensors.into_iter().map(|(name, tensor)| {
                    let numbers = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
                    (name, numbers.to_vec1::<f32>().unwrap())
                });
                let name = path.file_name().unwrap().to_owned();
                (name, numbers.collect::<BTreeMap<_, _>>())
            })
            .collect::<Vec<_>>()
    };
    assert!(by_name(&run) == by_name(&alone), "the records differ");
    let again = finish(run.vtrain(&["precompute"], &[]));
    assert!(stderr(&again).contains("all 7 clips"), "{}", stderr(&again));
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs mpi: built without the feature")]
fn fewer_clips_than_ranks_are_no_reason_to_wait() {
    let run = Run::new(2, "");
    let output = precompute(&run, 4, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(records(&run, "clips").len(), 2);
    let again = precompute(&run, 4, &[]);
    assert!(stderr(&again).contains("are not loaded"), "{}", stderr(&again));
}

#[test]
#[cfg_attr(not(feature = "mpi"), ignore = "needs mpi: built without the feature")]
fn a_clip_that_breaks_on_one_rank_is_told_by_rank_0_and_left_out_or_ends_the_run() {
    for skip in [true, false] {
        let run = Run::new(7, "");
        let name = damage(&run, 3); // the fourth clip is rank 3's
        let set = format!("datasets.0.on_invalid_clip={}", if skip { "skip" } else { "error" });
        let output = precompute(&run, 4, &["--set", &set]);
        let said = stderr(&output);
        let line = said
            .lines()
            .find(|line| line.contains(&name))
            .expect("the clip is named");
        assert!(line.starts_with("[rank 0] "), "{said}");
        if skip {
            assert_eq!(output.status.code(), Some(0), "{said}");
            assert!(line.contains("skipped"), "{said}");
            assert_eq!(records(&run, "clips").len(), 6);
            assert_eq!(encoded(&run, 4).concat().len(), 6);
        } else {
            assert_eq!(output.status.code(), Some(3), "{said}");
            assert!(line.contains("rank 3"), "{said}");
        }
    }
}
