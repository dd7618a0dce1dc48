//! Sizes above which a file is rejected unread, or read in part. Files are sparse if their bytes do not matter.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use tempfile::TempDir;
use vtrain::config::RunConfig;
use vtrain::data::cache::{Cache, Key, RecordSchema, TextEncoderId};
use vtrain::diffusers_config as config;
use vtrain::diffusion::schedulers::config::Config as Schedule;
use vtrain::disk::Journal;
use vtrain::lock::{Lock, LockError};
use vtrain::lora::file;
use vtrain::lora::merge::Folder;
use vtrain::models::registry;
use vtrain::nn::WeightFolder;
use vtrain::report::Run;
use vtrain::text::sentencepiece::SentencePiece;
use vtrain::text::special::SideFiles;
use vtrain::text::tokenize::TextTokenizer;
use vtrain::{data, magic};

use crate::disk::{again, folder_of_child};

fn hole(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

/// Returns the error for a file; empty if it is read.
fn said<T, E: std::fmt::Debug>(result: Result<T, E>) -> String {
    result.err().map_or_else(String::new, |error| format!("{error:?}"))
}

/// Readers of a kind of file: name, maximum bytes, function, and message for more.
type Reader<'a> = (&'a str, u64, &'a dyn Fn(&Path) -> String, &'a str);

#[test]
fn files_larger_than_any_of_their_kind_are_refused_by_their_size() {
    const MIB: u64 = 1 << 20;
    let folder = TempDir::new().unwrap();
    let adapter = folder.path().join("adapter.safetensors");
    let shipped =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wan/lora/pytorch_lora_weights.safetensors");
    fs::copy(shipped, &adapter).unwrap();
    let index = "diffusion_pytorch_model.safetensors.index.json";
    fs::write(folder.path().join("merges.txt"), "#version: 0.2\n").unwrap();
    let readers: [Reader; 9] = [
        (
            "config.json",
            MIB,
            &|_| said(config::text(&folder.path().join("config.json"))),
            "too many for a config",
        ),
        (
            "scheduler_config.json",
            MIB,
            &|_| said(Schedule::load(folder.path())),
            "too many for a config",
        ),
        (
            "run.yaml",
            MIB,
            &|path| said(RunConfig::load(path, &[])),
            "a run file has at most",
        ),
        (
            "tokenizer_config.json",
            16 * MIB,
            &|_| said(SideFiles::read(folder.path())),
            "too many for this file",
        ),
        (
            "adapter_config.json",
            16 * MIB,
            &|_| said(file::read(&adapter, &registry::names())),
            "too many for settings",
        ),
        (
            "spiece.model",
            32 * MIB,
            &|path| said(SentencePiece::open(path)),
            "too many for a tokenizer",
        ),
        (
            index,
            64 * MIB,
            &|_| said(WeightFolder::new(folder.path(), None).files()),
            "too many for an index",
        ),
        (
            "vocab.json",
            64 * MIB,
            &|_| said(TextTokenizer::open(folder.path())),
            "too many for a vocabulary",
        ),
        (
            "tokenizer.json",
            256 * MIB,
            &|_| said(TextTokenizer::open(folder.path())),
            "too many for a tokenizer",
        ),
    ];
    for (name, most, read, refusal) in readers {
        let path = folder.path().join(name);
        hole(&path, most);
        let within = read(&path);
        assert!(!within.contains(refusal), "{name}: {within}");
        hole(&path, most + 1);
        let beyond = read(&path);
        assert!(
            beyond.contains(refusal) && beyond.contains(&(most + 1).to_string()),
            "{name}: {beyond}"
        );
        fs::remove_file(path).unwrap();
    }
}

/// A limit of gigabytes is not filled here: what is read below it, other tests show.
#[test]
fn an_adapter_of_more_than_8_gib_and_a_table_of_more_than_1_gib_are_refused_unread() {
    let folder = TempDir::new().unwrap();
    let adapter = folder.path().join("adapter.safetensors");
    hole(&adapter, (8 << 30) + 1);
    assert!(said(file::read(&adapter, &[])).contains("too many for an adapter"));
    fs::write(folder.path().join("a.y4m"), crate::data::y4m(48, 32, 9, 8)).unwrap();
    hole(&folder.path().join("metadata.jsonl"), (1 << 30) + 1);
    let config = data::Config {
        path: folder.path().into(),
        ..data::Config::default()
    };
    let report = data::survey(&[config], false, &|_, _| {});
    let refused = serde_json::to_string(&report).unwrap();
    assert!(refused.contains("larger than 1 GiB"), "{refused}");
}

/// safetensors allows no header of more than 100 MB; what is within is blank but for one tensor.
#[test]
fn a_header_longer_than_any_is_not_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    for (length, reads) in [(100 << 20, true), ((100 << 20) + 1, false)] {
        let mut header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_vec();
        header.resize(length, b' ');
        let mut file = File::create(&path).unwrap();
        for part in [&(length as u64).to_le_bytes()[..], &header, &[0; 4]] {
            file.write_all(part).unwrap();
        }
        let merged = said(Folder::open(folder.path()));
        assert_eq!(merged.is_empty(), reads, "{length}: {merged}");
        let model = said(registry::of_checkpoint(&path));
        assert_eq!(model.contains("a single file of weights"), reads, "{length}: {model}");
    }
}

#[test]
fn a_record_has_little_more_than_its_numbers() {
    let folder = TempDir::new().unwrap();
    let cache = Cache::open(folder.path());
    let coder = TextEncoderId {
        fingerprint: blake3::hash(b"t5"),
        dtype: DType::F32,
        quantization: None,
        tokens: 1,
    };
    let (key, form) = (
        Key::caption("a ball", None, &coder),
        RecordSchema::caption(vec![("embedding", vec![1, 2])], DType::F32),
    );
    let numbers = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
    for (more, expected) in [(1 << 20, false), ((1 << 20) + 1, true)] {
        cache.write(&key, &form, std::slice::from_ref(&numbers), &[]).unwrap();
        assert!(cache.read(&key, &form).is_ok());
        File::options()
            .write(true)
            .open(cache.path(&key))
            .unwrap()
            .set_len(form.bytes() + more)
            .unwrap();
        let told = said(cache.read(&key, &form));
        assert_eq!(told.contains("but about"), expected, "{more}: {told}");
    }
}

#[test]
fn a_page_goes_without_settings_or_clips_that_are_too_long() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("report")).unwrap();
    fs::write(folder.path().join("metrics.jsonl"), "{\"step\": 1}\n").unwrap();
    let about = r#"{"steps": 1, "frame_rate": 8.0, "environment": [], "clips": []}"#;
    for (more, reads) in [(0, true), (1, false)] {
        fs::write(
            folder.path().join("config.yaml"),
            format!("seed: 7{}", "\n".repeat((1 << 20) - 7 + more)),
        )
        .unwrap();
        let mut file = File::create(folder.path().join("report/about.json")).unwrap();
        file.write_all(about.as_bytes()).unwrap();
        let (mut left, blank) = ((256 << 20) - about.len() + more, vec![b' '; 1 << 20]);
        while left > 0 {
            left -= file.write(&blank[..left.min(blank.len())]).unwrap();
        }
        let run = Run::read(folder.path()).unwrap();
        assert_eq!(
            (run.settings.text.starts_with("seed: 7"), run.clips.is_some()),
            (reads, reads),
            "{more}"
        );
    }
}

/// A holder's line is read up to 1024 bytes: what is cut there names no process.
#[test]
fn a_lock_says_who_holds_it_where_its_line_is_no_longer_than_any() {
    let folder = TempDir::new().unwrap();
    for (bytes, named) in [(1024, true), (1025, false)] {
        let path = folder.path().join(".lock");
        let line = "h".repeat(bytes - 2) + " 7";
        fs::write(&path, &line).unwrap();
        let held = File::open(&path).unwrap();
        held.lock().unwrap();
        let Err(LockError::Held { by, .. }) = Lock::take(folder.path()) else {
            panic!("{bytes}")
        };
        assert_eq!(by.is_some(), named, "{bytes}: {by:?}");
    }
}

/// A limit on file sizes simulates a full disk; when it is lifted, the queued records are written.
#[cfg(target_os = "linux")]
#[test]
fn records_that_cannot_be_written_wait_up_to_16_mib() {
    const MIB: usize = 1 << 20;
    if let Some(folder) = folder_of_child() {
        let limit = |bytes| {
            let limit = libc::rlimit {
                rlim_cur: bytes,
                rlim_max: libc::RLIM_INFINITY,
            };
            // SAFETY: the limit is a plain structure, and this process is the test's own.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
        };
        for records in [16, 17] {
            let mut journal = Journal::create(&folder.join(records.to_string())).unwrap();
            limit(0);
            (0..records).for_each(|n| journal.add(vec![n; MIB]));
            limit(libc::RLIM_INFINITY);
            journal.sync();
        }
        std::process::exit(17);
    }
    let folder = TempDir::new().unwrap();
    let test = "thresholds::files::records_that_cannot_be_written_wait_up_to_16_mib";
    let ignoring = ["sh", "-c", "trap '' XFSZ; exec \"$0\" \"$@\""];
    let child = again(test, folder.path(), &ignoring).output().unwrap();
    assert_eq!(
        child.status.code(),
        Some(17),
        "{}",
        String::from_utf8_lossy(&child.stderr)
    );
    for (records, first) in [(16, 0), (17, 1)] {
        let written = fs::read(folder.path().join(records.to_string())).unwrap();
        let kept: Vec<u8> = written.iter().step_by(MIB).copied().collect();
        assert_eq!(
            (written.len(), kept),
            (16 * MIB, (first..records).collect()),
            "{records}"
        );
    }
}

#[test]
fn what_a_file_is_stands_in_its_first_64_bytes() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    for (blank, told) in [(64 - 9, true), (65 - 9, false)] {
        fs::write(&path, " ".repeat(blank) + "<!DOCTYPE html>").unwrap();
        assert_eq!(magic::explain(&path).is_some(), told, "{blank}");
    }
}
