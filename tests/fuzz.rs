//! Hostile files: real ones of every format that vtrain reads, slightly corrupted, from fixed seeds. Each is read or
//! refused by its name, without a panic, within 10 s and in less than 1 GB.
//!
//! `FORMATS` is the list. Together they have 2,000 cases; `VTRAIN_FUZZ=100000 cargo test fuzz:: -- --nocapture` tries
//! as many in all, and `VTRAIN_FUZZ_CASE=17` one of each format again. What fails is left in the temporary folder.

mod datasets; // captions and manifests
mod media; // clips and images
mod models; // every file of a diffusers checkpoint
mod mutate; // how files are spoiled
mod runs; // run files, what a run leaves, caches
mod scripts; // other trainers' commands

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vtrain::rng::Rng;

/// Cases of all formats together, if nothing else is asked for.
const CASES: usize = 2_000;
/// A case takes less, also where the machine is busy.
const LONGEST: Duration = Duration::from_secs(60);
/// Time-out of a case, after which the tests end.
const HANGS: Duration = Duration::from_secs(120);
/// The process comes to hold less while it reads. (Other tests may run in the same one.)
const MOST_BYTES: u64 = 1 << 30;

/// A test for each format, and their list: what it is called, its share of the cases, its files.
macro_rules! formats {
    ($($test:ident $cases:literal $corpus:path;)*) => {
        const FORMATS: &[(&str, usize)] = &[$((stringify!($test), $cases)),*];
        $(
            #[test]
            fn $test() {
                run(stringify!($test), $cases, $corpus());
            }
        )*
    };
}

formats! {
    run_files_are_read_or_refused_by_name 200 runs::run_files;
    pipelines_indices_are_read_or_refused_by_name 80 models::indices;
    configs_of_transformers_are_read_or_refused_by_name 100 models::transformers;
    configs_of_autoencoders_are_read_or_refused_by_name 80 models::autoencoders;
    configs_of_text_encoders_are_read_or_refused_by_name 60 models::text_encoders;
    configs_of_image_encoders_are_read_or_refused_by_name 40 models::image_encoders;
    configs_of_schedulers_are_read_or_refused_by_name 160 models::schedulers;
    weights_and_their_indices_are_read_or_refused_by_name 100 models::weights;
    weights_in_few_bits_are_read_or_refused_by_name 80 models::weights_in_few_bits;
    tokenizers_are_read_or_refused_by_name 180 models::tokenizers;
    adapter_files_are_read_or_refused_by_name 160 models::adapters;
    captions_line_by_line_are_read_or_refused_by_name 80 datasets::lines;
    captions_beside_clips_are_read_or_refused_by_name 60 datasets::pairs;
    tables_of_text_are_read_or_refused_by_name 140 datasets::tables;
    tables_of_parquet_are_read_or_refused_by_name 80 datasets::parquet;
    media_are_read_or_refused_by_name 160 media::all;
    records_of_the_cache_are_read_or_refused_by_name 60 runs::cache;
    checkpoints_of_runs_are_resumed_or_refused_by_name 40 runs::checkpoints;
    logs_of_runs_are_read_or_refused_by_name 40 runs::logs;
    scripts_of_other_trainers_are_read_or_refused_by_name 100 scripts::all;
}

#[test]
fn all_formats_together_have_as_many_cases_as_is_said() {
    assert_eq!(FORMATS.iter().map(|(_, cases)| cases).sum::<usize>(), CASES);
}

/// Files of a format, those to corrupt, and their reader.
pub struct Corpus {
    folder: TempDir,
    /// Those that are spoiled, from the folder.
    files: Vec<PathBuf>,
    /// Reads a file, and whatever goes with it, as far as a run would; given the folder and the file's name in it.
    read: Box<Read>,
    /// Names that an error may have in place of the file.
    or_names: fn(&Path) -> Option<String>,
    /// True for files that only save work, or are shown as far as possible: none is rejected.
    forgiving: bool,
    /// Makes what is spoiled look right: checksums.
    sign: Option<fn(&Path, &Path, &mut Rng)>,
}

type Read = dyn Fn(&Path, &Path) -> anyhow::Result<()>;

impl Corpus {
    fn new(folder: TempDir, files: Vec<PathBuf>, read: impl Fn(&Path, &Path) -> anyhow::Result<()> + 'static) -> Self {
        Self {
            folder,
            files,
            read: Box::new(read),
            or_names: |_| None,
            forgiving: false,
            sign: None,
        }
    }

    fn read(&self, file: &Path) -> anyhow::Result<()> {
        (self.read)(self.folder.path(), file)
    }
}

/// Returns the number of cases for a format, given its share.
fn cases(share: usize) -> usize {
    let all = std::env::var("VTRAIN_FUZZ").map_or(CASES, |n| n.parse().expect("VTRAIN_FUZZ is a number of cases"));
    (share * all).div_ceil(CASES)
}

/// Spoils the files of a format one after the other, and reads them.
fn run(format: &'static str, share: usize, corpus: Corpus) {
    let originals: Vec<Vec<u8>> = corpus
        .files
        .iter()
        .map(|file| std::fs::read(corpus.folder.path().join(file)).unwrap())
        .collect();
    for file in &corpus.files {
        let read = corpus.read(file);
        read.unwrap_or_else(|error| panic!("{}: what is not spoiled is read: {error:#}", file.display()));
    }
    let only: Option<usize> = std::env::var("VTRAIN_FUZZ_CASE").ok().and_then(|n| n.parse().ok());
    let seed = format
        .bytes()
        .fold(0u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let watch = Watch::new();
    let before = peak_memory();
    let (mut read, mut refused, mut slowest, mut wrong) = (0, 0, Duration::ZERO, Vec::new());
    for case in 0..cases(share) {
        if only.is_some_and(|only| only != case) {
            continue;
        }
        let (file, original) = (
            &corpus.files[case % corpus.files.len()],
            &originals[case % corpus.files.len()],
        );
        let path = corpus.folder.path().join(file);
        let mut rng = Rng::new(seed.wrapping_add(case as u64));
        std::fs::write(&path, mutate::spoil(&file.to_string_lossy(), original, &mut rng)).unwrap();
        if let Some(sign) = corpus.sign {
            sign(corpus.folder.path(), file, &mut rng);
        }
        watch.began(format!("{format}, case {case}: {}", file.display()));
        let started = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| corpus.read(file)));
        let took = started.elapsed();
        slowest = slowest.max(took);
        let verdict = match result {
            Err(_) => Err("a panic".to_string()),
            Ok(_) if took > LONGEST => Err(format!("{took:?}")),
            Ok(_) if peak_memory() > before + MOST_BYTES => Err(format!("{} bytes in all", peak_memory())),
            Ok(Ok(())) => {
                read += 1;
                Ok(())
            }
            Ok(Err(error)) => {
                refused += 1;
                named(&corpus, file, &format!("{error:#}"))
            }
        };
        if let Err(what) = verdict {
            let name = file.file_name().unwrap().to_string_lossy();
            let left = std::env::temp_dir().join(format!("vtrain-fuzz-{format}-{case}-{name}"));
            let _ = std::fs::copy(&path, &left);
            wrong.push(format!(
                "case {case}: {}: {what} (left in {})",
                file.display(),
                left.display()
            ));
        }
        std::fs::write(&path, original).unwrap();
        if wrong.len() == 20 {
            break;
        }
    }
    drop(watch);
    println!(
        "{format}: {} cases, {read} read, {refused} refused, slowest {} ms, peak {} MiB",
        read + refused,
        slowest.as_millis(),
        peak_memory() >> 20
    );
    assert!(wrong.is_empty(), "{format}:\n{}", wrong.join("\n"));
    if only.is_none() {
        let both = read > 0 && (refused > 0 || corpus.forgiving);
        assert!(
            both,
            "{read} read, {refused} refused: the files are spoiled too little or too much"
        );
    }
}

/// Checks that an error names its file.
fn named(corpus: &Corpus, file: &Path, said: &str) -> Result<(), String> {
    let name = file.file_name().unwrap().to_string_lossy();
    let other = (corpus.or_names)(file);
    match said.contains(&*name) || other.is_some_and(|other| said.contains(&other)) {
        true => Ok(()),
        false => Err(format!("an error that does not name it: {said}")),
    }
}

/// Ends the tests, and says where they were, when a case never ends.
struct Watch(mpsc::Sender<String>);

impl Watch {
    fn new() -> Self {
        let (sender, receiver) = mpsc::channel::<String>();
        std::thread::spawn(move || {
            let mut now = String::from("before the first case");
            loop {
                match receiver.recv_timeout(HANGS) {
                    Ok(next) => now = next,
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        eprintln!("{now}: does not end");
                        std::process::abort();
                    }
                }
            }
        });
        Self(sender)
    }

    fn began(&self, case: String) {
        self.0.send(case).expect("the watch outlives the cases");
    }
}

/// The most memory this process has held, in bytes; 0 where the system does not say.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// Copies a folder, so that a file of it can be spoiled.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Returns a path in the tests' fixtures.
fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The files below a folder that are of interest, sorted, from the folder.
fn files(folder: &Path, of_interest: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let (mut found, mut waiting) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => waiting.push(path),
                false => found.push(path.strip_prefix(folder).unwrap().to_path_buf()),
            }
        }
    }
    found.retain(|path| of_interest(path));
    found.sort();
    assert!(!found.is_empty(), "no files in {}", folder.display());
    found
}
