//! Mutated input: bytes flipped, cut out, doubled, truncated, from fixed seeds. No panic, no hang, no memory run away.
//!
//! Few cases by default; `VTRAIN_FUZZ=5000 cargo test fuzz` for the many.

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use vtrain::diffusion::schedulers::{self, Scheduler};
use vtrain::lora::file;
use vtrain::lora::format::Format;
use vtrain::lora::inspect::Report;
use vtrain::lora::resize::resize;
use vtrain::models::rooms;
use vtrain::models::{self, FamilyName};
use vtrain::nn::Weights;
use vtrain::rng::Rng;
use vtrain::text::t5;
use vtrain::vision::{ClipVision, Preprocessor, clip};

/// How many cases to try.
pub fn cases(default: usize) -> usize {
    std::env::var("VTRAIN_FUZZ")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(default)
}

/// `original` with one to eight small accidents.
pub fn mutate(original: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=below(rng, 8) {
        if bytes.is_empty() {
            break;
        }
        let at = below(rng, bytes.len());
        let end = (at + 1 + below(rng, 16)).min(bytes.len());
        match below(rng, 6) {
            0 => bytes[at] ^= 1 << below(rng, 8),
            1 => bytes[at] = below(rng, 256) as u8,
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                let to = below(rng, bytes.len());
                bytes.splice(to..to, copy);
            }
            4 => bytes[at..end].fill(0xff),
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// `original` with one of its numbers changed: still of its format, but with other sizes.
pub fn miscount(original: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    let digits: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at].is_ascii_digit()).collect();
    if let Some(&at) = (!digits.is_empty()).then(|| &digits[below(rng, digits.len())]) {
        match below(rng, 3) {
            0 => bytes[at] = b'0' + below(rng, 10) as u8,
            1 => drop(bytes.remove(at)),
            _ => drop(bytes.splice(at + 1..at + 1, b"0000".iter().copied().take(1 + below(rng, 4)))),
        }
    }
    bytes
}

/// A whole number in 0..n.
pub fn below(rng: &mut Rng, n: usize) -> usize {
    rng.randint(0, n as i64, 1)[0] as usize
}

/// Runs one case and fails if it takes longer than 10 s.
pub fn timed<T>(case: usize, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "case {case} took {:?}",
        start.elapsed()
    );
    result
}

/// The most memory this process has held, in bytes; 0 where the system does not say.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

#[test]
fn mutated_run_files_are_read_or_refused() {
    let original = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/cogvideox/lora.yaml")).unwrap();
    let mut rng = Rng::new(2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.yaml");
    let (mut read, mut refused) = (0, 0);
    for case in 0..cases(500) {
        std::fs::write(&path, mutate(&original, &mut rng)).unwrap();
        match timed(case, || vtrain::config::RunConfig::load(&path, &[])) {
            Ok(_) => read += 1,
            Err(problems) => {
                assert!(!problems.0.is_empty());
                assert!(
                    problems
                        .0
                        .iter()
                        .all(|p| p.place.contains("run.yaml") && !p.message.is_empty())
                );
                refused += 1;
            }
        }
    }
    assert!(
        read > 0 && refused > 0,
        "{read} read, {refused} refused: the mutations are too weak or too strong"
    );
    assert!(peak_memory() < 1 << 30, "{} bytes", peak_memory());
}

/// Copies a checkpoint, so that a file of it can be spoiled.
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

/// Everything that a run reads of a checkpoint, as far as it comes.
fn read_checkpoint(folder: &Path) -> anyhow::Result<()> {
    let family = models::open(folder, FamilyName::Auto, DType::F32, &Device::Cpu)?;
    family.scheduler()?.start(2, None)?;
    family.embed(&["a red ball"])?;
    family.denoiser(None)?;
    let canvas = family.canvas(1, 32, 48)?;
    let latents = Tensor::zeros(&canvas.shape, DType::F32, &Device::Cpu)?;
    family.decode(&latents, &canvas, &mut Rng::new(0), &mut |_| Ok(()))
}

#[test]
fn mutated_checkpoints_are_read_or_refused_by_file() {
    let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox/cogvideox-5b");
    let folder = tempfile::tempdir().unwrap();
    let spoiled = folder.path().join("checkpoint");
    copy(&whole, &spoiled);
    read_checkpoint(&spoiled).expect("what is not spoiled is read");
    let mut files = vec!["model_index.json".to_string()];
    for part in ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"] {
        let names = std::fs::read_dir(whole.join(part)).unwrap();
        files.extend(names.map(|entry| format!("{part}/{}", entry.unwrap().file_name().to_str().unwrap())));
    }
    files.sort();
    let mut rng = Rng::new(3);
    let (mut read, mut refused) = (0, 0);
    for case in 0..cases(150) {
        let file = &files[case % files.len()];
        let original = std::fs::read(whole.join(file)).unwrap();
        let spoil = if case / files.len() % 2 == 0 { mutate } else { miscount };
        let mutant = match file.ends_with(".safetensors") {
            // The numbers of a tensor may be anything: only the header is of interest.
            true => {
                let header = 8 + u64::from_le_bytes(original[..8].try_into().unwrap()) as usize;
                [spoil(&original[..header], &mut rng), original[header..].to_vec()].concat()
            }
            false => spoil(&original, &mut rng),
        };
        std::fs::write(spoiled.join(file), mutant).unwrap();
        match timed(case, || read_checkpoint(&spoiled)) {
            Ok(()) => read += 1,
            Err(error) => {
                let said = format!("{error:#}");
                let part = file.split('/').next().unwrap();
                assert!(said.contains("checkpoint") || said.contains(part), "{file}: {said}");
                refused += 1;
            }
        }
        std::fs::write(spoiled.join(file), original).unwrap();
    }
    println!("{read} read, {refused} refused, peak {} MiB", peak_memory() >> 20);
    assert!(read > 0 && refused > 0, "{read} read, {refused} refused");
    assert!(peak_memory() < 1 << 30, "{} bytes", peak_memory());
}

/// Reads the text of a config as far as a run would.
type Read = fn(&str) -> anyhow::Result<()>;

#[test]
fn mutated_configs_of_parts_are_read_or_refused() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wan");
    let file = |name: &str| std::fs::read_to_string(fixtures.join(name)).unwrap();
    let schedule: Read = |text| {
        let scheduler = Scheduler::new(schedulers::Config::parse(text)?)?;
        let steps = scheduler.start_from(7, 0.8, Some(1234))?.timesteps().len();
        anyhow::ensure!(steps == 5, "{steps} steps");
        Ok(())
    };
    let parts: [(String, Read); 5] = [
        (
            r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 1024, "base_shift": 0.95,
            "max_image_seq_len": 4096, "max_shift": 2.05, "shift_terminal": 0.1, "use_dynamic_shifting": true,
            "num_train_timesteps": 1000, "time_shift_type": "linear", "use_karras_sigmas": true}"#
                .into(),
            schedule,
        ),
        (
            r#"{"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0, "use_flow_sigmas": true, "solver_order": 3,
            "prediction_type": "flow_prediction", "disable_corrector": [0], "final_sigmas_type": "sigma_min"}"#
                .into(),
            schedule,
        ),
        (file("wan-2.1-t2v/text_encoder/config.json"), |text| {
            t5::Config::parse(text).map(drop)
        }),
        (file("wan-2.1-i2v/image_encoder/config.json"), |text| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wan/wan-2.1-i2v/image_encoder");
            let weights = Weights::open(&folder, DType::F32, &Device::Cpu)?;
            let encoder = ClipVision::new(&clip::Config::parse(text)?, weights)?;
            encoder.forward(&Tensor::zeros((1, 3, 42, 42), DType::F32, &Device::Cpu)?)?;
            Ok(())
        }),
        (file("wan-2.1-i2v/image_processor/preprocessor_config.json"), |text| {
            Preprocessor::parse(text)?.pixels(&[9; 50 * 60 * 3], (50, 60), &Device::Cpu)?;
            Ok(())
        }),
    ];
    let mut rng = Rng::new(6);
    for (text, read) in &parts {
        read(text).expect("what is not spoiled is read");
        let (mut good, mut refused) = (0, 0);
        for case in 0..cases(200) {
            let spoil = if case % 2 == 0 { mutate } else { miscount };
            let mutant = String::from_utf8_lossy(&spoil(text.as_bytes(), &mut rng)).into_owned();
            match timed(case, || read(&mutant)) {
                Ok(()) => good += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                }
            }
        }
        assert!(good > 0 && refused > 0, "{good} read, {refused} refused: {text}");
    }
    assert!(peak_memory() < 1 << 30, "{} bytes", peak_memory());
}

/// A letter of the header becomes another: names and number formats change, and it stays JSON.
fn misspell(header: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = header.to_vec();
    let letters: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at].is_ascii_alphabetic()).collect();
    let at = letters[below(rng, letters.len())];
    bytes[at] = b"ABFQaklopqsv_."[below(rng, 14)];
    bytes
}

/// All that is done with an adapter file, as far as it comes.
fn read_adapters(bytes: &[u8], config: &str) -> anyhow::Result<()> {
    let read = file::from_bytes(bytes, Some(config), &rooms::names())?;
    Report::of(&read, |_, _| None)?;
    for format in [Format::Diffusers, Format::ComfyUi, Format::Kohya] {
        let written = read.write(format)?;
        file::from_bytes(&written, None, &rooms::names())?.check()?;
    }
    resize(&read.layers, 1)?;
    Ok(())
}

#[test]
fn mutated_adapter_files_are_read_or_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lora/formats");
    let names = [
        "musubi_wan",
        "comfyui_wan",
        "comfyui_ltx_video",
        "diffusers_wan",
        "peft_cogvideox/adapter_model",
    ];
    let sources = names.map(|name| std::fs::read(folder.join(format!("{name}.safetensors"))).unwrap());
    let config = std::fs::read(folder.join("peft_cogvideox/adapter_config.json")).unwrap();
    let mut rng = Rng::new(10);
    let (mut whole, mut refused) = (0, 0);
    for case in 0..cases(500) {
        let source = &sources[below(&mut rng, sources.len())];
        let (header, data) = source.split_at(8 + u64::from_le_bytes(source[..8].try_into().unwrap()) as usize);
        let mut bytes = match below(&mut rng, 5) {
            0 => mutate(source, &mut rng),
            1 => [header, &mutate(data, &mut rng)].concat(),
            2 => [&header[..8], &mutate(&header[8..], &mut rng), data].concat(),
            3 => [&header[..8], &miscount(&header[8..], &mut rng), data].concat(),
            _ => [&header[..8], &misspell(&header[8..], &mut rng), data].concat(),
        };
        // Mostly the header is told to be as long as it has become.
        if below(&mut rng, 4) > 0 && bytes.len() >= data.len() + 8 {
            let length = (bytes.len() - data.len() - 8) as u64;
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
        let config = match below(&mut rng, 2) {
            0 => config.clone(),
            _ => miscount(&config, &mut rng),
        };
        match timed(case, || read_adapters(&bytes, &String::from_utf8_lossy(&config))) {
            Ok(()) => whole += 1,
            Err(error) => {
                assert!(!format!("{error:#}").is_empty());
                refused += 1;
            }
        }
    }
    println!("{whole} whole, {refused} refused");
    assert!(whole > 0 && refused > 0, "{whole} whole, {refused} refused");
    assert!(peak_memory() < 1 << 30, "{} bytes", peak_memory());
}
