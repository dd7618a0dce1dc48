//! Too little memory is reported before anything is loaded, if it can be known.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use vtrain::models::cogvideox::vae::Vae;
use vtrain::nn::Weights;
use vtrain::process::memory::{self, Free, Limit};

use super::{Run, assert_failed, model, stderr, straight};
use crate::disk::{again, folder_of_child};

/// A copy of the tiny checkpoint of which a part has one more tensor, of so many bytes, that are a hole in the file.
fn with_hole(folder: &Path, part: &str, bytes: u64) {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
            match from.is_dir() {
                true => copy(&from, &to),
                false => drop(fs::copy(from, to).unwrap()),
            }
        }
    }
    copy(&model(), folder);
    let part = folder.join(part);
    for entry in fs::read_dir(&part).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains("safetensors") {
            fs::remove_file(path).unwrap();
        }
    }
    let header = format!(
        "{{\"hole\":{{\"dtype\":\"BF16\",\"shape\":[{}],\"data_offsets\":[0,{bytes}]}}}}",
        bytes / 2
    );
    let file = part.join("diffusion_pytorch_model.safetensors");
    let start = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    fs::write(&file, &start).unwrap();
    let file = fs::OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(start.len() as u64 + bytes).unwrap();
}

/// `vtrain bench` on such a checkpoint, in an address space of so many KiB.
fn bench(bytes: u64, limit: Option<u64>) -> Output {
    let run = Run::new();
    let model = run.folder.path().join("model");
    with_hole(&model, "transformer", bytes);
    let mut shell = Command::new("sh");
    let limit = limit.map_or("unlimited".to_string(), |kib| kib.to_string());
    shell.args([
        "-c",
        "ulimit -v \"$2\"; exec \"$0\" bench --config \"$1\" --set \"model.path=$3\"",
    ]);
    shell
        .arg(env!("CARGO_BIN_EXE_vtrain"))
        .arg(run.file())
        .arg(limit)
        .arg(model);
    shell.output().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn weights_that_the_machine_cannot_hold_are_refused_before_they_are_read() {
    // Written as bf16; as f32 it is twice that.
    let output = bench(4 << 40, None);
    let words = [
        "transformer as f32 takes 8.00 TiB",
        "are available: the ",
        "more is needed",
    ];
    assert_failed(&output, &words);
}

/// The processor computes autoencoders in f32 and stores nothing narrower.
#[cfg(target_os = "linux")]
#[test]
fn an_autoencoder_in_bf16_needs_memory_for_f32() {
    let model = tempfile::tempdir().unwrap();
    with_hole(model.path(), "vae", 4 << 40);
    let loaded = Vae::load(&model.path().join("vae"), DType::BF16, &Device::Cpu);
    let said = loaded.err().map(|error| format!("{error:#}")).unwrap_or_default();
    assert!(said.contains("vae as f32 takes 8.00 TiB"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "needs memory: 6 GiB"]
fn weights_that_fit_in_another_format_are_refused_with_that() {
    // 2 GiB of file are mapped, and so many would have to be taken for bf16.
    let output = bench(2 << 30, Some(6 << 20));
    let words = [
        "transformer as f32 takes 4.00 GiB",
        "ulimit -v allows no more",
        "model.dtype: bf16 takes 2.00 GiB, which fits",
    ];
    assert_failed(&output, &words);
}

/// A million clips at once: their noise is 288 numbers each.
#[cfg(target_os = "linux")]
#[test]
fn an_allocation_that_fails_is_told_with_the_exit_code_for_it() {
    let run = Run::new();
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        "ulimit -v 1048576; exec \"$0\" bench --random-weights --config \"$1\" --set train.batch_size=1000000",
    ]);
    let output = shell
        .arg(env!("CARGO_BIN_EXE_vtrain"))
        .arg(run.file())
        .output()
        .unwrap();
    assert_failed(
        &output,
        &[
            "out of memory: 1152000000 more bytes are not available",
            "ulimit -v",
            "train.batch_size: 1",
        ],
    );
}

/// Under some limits the program itself does not start, under some only a video is missing; under none is anything lost.
#[cfg(target_os = "linux")]
#[test]
fn a_run_under_any_limit_of_memory_ends_in_words_and_goes_on_without_it() {
    for mib in [250, 280, 310, 400, 550] {
        let run = Run::new();
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -v \"$2\"; exec \"$0\" --config \"$1\""]);
        shell
            .arg(env!("CARGO_BIN_EXE_vtrain"))
            .arg(run.file())
            .arg((mib << 10).to_string());
        let output = shell.env("RAYON_NUM_THREADS", "1").output().unwrap();
        let said = stderr(&output);
        println!(
            "{mib} MiB: {:?} {}",
            output.status.code(),
            said.lines().last().unwrap_or_default()
        );
        run.train();
        assert!(run.adapter() == straight().adapter, "{mib} MiB: the adapters differ");
    }
}

/// Eight shards of 32 MiB in f32, read as bf16: memory holds the target, but not the files in addition.
#[cfg(target_os = "linux")]
#[test]
fn loading_holds_the_target_and_little_more_than_one_shard() {
    const SHARDS: usize = 8;
    const TENSORS: usize = 4; // in a shard
    const NUMBERS: usize = 2 << 20; // in a tensor
    const MIB: f64 = (1 << 20) as f64;
    let path = |folder: &Path, shard: usize| folder.join(format!("model-{shard}.safetensors"));
    let name = |shard: usize, tensor: usize| format!("layer{shard}.{tensor}");
    if let Some(folder) = folder_of_child() {
        vtrain::process::set_up();
        let before = memory::resident().unwrap().now;
        let weights = Weights::open(&folder, DType::BF16, &Device::Cpu).unwrap();
        let all = (0..SHARDS).flat_map(|shard| (0..TENSORS).map(move |tensor| name(shard, tensor)));
        let held: Vec<Tensor> = all.map(|name| weights.get(NUMBERS, &name).unwrap()).collect();
        let peak = memory::resident().unwrap().peak - before;
        let shard = (TENSORS * NUMBERS * size_of::<f32>()) as u64;
        let target = held.iter().map(|tensor| 2 * tensor.elem_count() as u64).sum::<u64>();
        let mib = |bytes: u64| bytes as f64 / MIB;
        eprintln!(
            "{:.0} MiB of files in shards of {:.0} MiB; target {:.0} MiB; peak {:.1} MiB",
            mib(shard * SHARDS as u64),
            mib(shard),
            mib(target),
            mib(peak)
        );
        std::process::exit(if peak < target + shard { 17 } else { 18 });
    }
    let folder = tempfile::tempdir().unwrap();
    let mut index = serde_json::Map::new();
    for shard in 0..SHARDS {
        let ones = Tensor::ones(NUMBERS, DType::F32, &Device::Cpu).unwrap();
        let tensors = (0..TENSORS).map(|tensor| {
            index.insert(name(shard, tensor), format!("model-{shard}.safetensors").into());
            (name(shard, tensor), ones.clone())
        });
        safetensors::serialize_to_file(tensors, None, &path(folder.path(), shard)).unwrap();
    }
    let index = serde_json::json!({"weight_map": index}).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let test = "faults::memory::loading_holds_the_target_and_little_more_than_one_shard";
    let child = again(test, folder.path(), &[]).output().unwrap();
    println!("{}", stderr(&child).trim());
    assert_eq!(child.status.code(), Some(17), "{}", stderr(&child));
}

#[test]
fn what_is_free_is_the_tightest_of_machine_groups_and_address_space() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let free = |address_space| memory::free_in(root.path(), address_space, false);
    let is = |mib: u64, limit| {
        Some(Free {
            bytes: mib << 20,
            limit,
        })
    };
    let mib = |n: u64| (n << 20).to_string();
    assert_eq!(free(None), None);
    write(
        "proc/meminfo",
        "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nSwapFree: 1048576 kB\n",
    );
    assert_eq!(free(None), is(8 << 10, Limit::Machine));
    assert_eq!(memory::free_in(root.path(), None, true), is(9 << 10, Limit::Machine));

    // Version 2, the limit on a group around ours; pages of files go when they must.
    write("proc/self/cgroup", "0::/batch/job\n");
    write("sys/fs/cgroup/batch/job/memory.max", "max\n");
    write("sys/fs/cgroup/batch/job/memory.current", &mib(700));
    write("sys/fs/cgroup/batch/memory.max", &mib(1000));
    write("sys/fs/cgroup/batch/memory.current", &mib(800));
    write(
        "sys/fs/cgroup/batch/memory.stat",
        &format!("anon 1\ninactive_file {}\nactive_file {}\n", mib(200), mib(100)),
    );
    assert_eq!(free(None), is(500, Limit::ControlGroup));

    // Version 1, in a container that sees its group as the root.
    write("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/docker/abc\n0::/\n");
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", &mib(600));
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", &mib(500));
    assert_eq!(free(None), is(100, Limit::ControlGroup));

    write("proc/self/status", "VmSize: 1048576 kB\n");
    assert_eq!(free(Some(1060 << 20)), is(36, Limit::AddressSpace));
    assert_eq!(free(Some(1 << 20)), is(0, Limit::AddressSpace));
    assert_eq!(free(Some(8 << 30)), is(100, Limit::ControlGroup));
}
