//! The kernels compile for every card that docs/gpu.md names, and a build without CUDA reports so. Their results are
//! checked on the CPU, in kernels.rs, and on a GPU by scripts/gpu_check.sh.

use std::path::{Path, PathBuf};
use std::process::Command;

use vtrain::ops::kernel::sources::SOURCES;

/// A100; RTX 40 and L40; H100.
const CARDS: [&str; 3] = ["sm_80", "sm_89", "sm_90"];

/// The compiler that build.rs takes.
fn nvcc() -> PathBuf {
    let home = std::env::var_os("CUDA_HOME").or_else(|| std::env::var_os("CUDA_PATH"));
    let named = std::env::var_os("NVCC").map(PathBuf::from);
    let nvcc = named.or_else(|| home.map(|home| Path::new(&home).join("bin/nvcc")));
    nvcc.unwrap_or_else(|| "nvcc".into())
}

fn sources() -> Vec<PathBuf> {
    let mut sources = Vec::new();
    kernels(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    assert!(sources.len() >= 7, "{sources:?}");
    sources.sort();
    sources
}

fn kernels(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            kernels(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "cu") {
            found.push(path);
        }
    }
}

#[test]
fn every_kernel_is_built_by_build_rs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut listed: Vec<PathBuf> = SOURCES.iter().map(|name| root.join(name)).collect();
    listed.sort();
    assert_eq!(sources(), listed, "what build.rs compiles: src/ops/kernel/sources.rs");
}

#[test]
#[ignore = "needs nvcc: a CUDA toolkit, on the path or where CUDA_HOME says"]
fn kernels_compile_for_every_card() {
    let nvcc = nvcc();
    let folder = tempfile::tempdir().unwrap();
    for source in &sources() {
        for card in CARDS {
            let to = folder.path().join("kernels.cubin");
            let output = Command::new(&nvcc)
                .args([
                    "--cubin",
                    "--std=c++17",
                    "-O3",
                    &format!("--gpu-architecture={card}"),
                    "-o",
                ])
                .args([&to, source])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{} for {card}: {said}", source.display());
            assert!(std::fs::metadata(&to).unwrap().len() > 0);
        }
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_so_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run.yaml");
    std::fs::write(
        &run,
        "device: cuda:1\nmodel: {path: nowhere}\ndatasets: [{path: nowhere}]\n",
    )
    .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vtrain"))
        .args(["bench", "--config"])
        .arg(&run)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("cuda:1") && said.contains("built without CUDA"), "{said}");
}

#[test]
fn f32_is_whole_on_a_gpu_unless_the_environment_says_otherwise() {
    const NAME: &str = "NVIDIA_TF32_OVERRIDE";
    const CHILD: &str = "VTRAIN_TEST_TF32";
    let said = |given: Option<&str>| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "cuda::f32_is_whole_on_a_gpu_unless_the_environment_says_otherwise",
            "--nocapture",
        ]);
        child
            .env(CHILD, "1")
            .env_remove(NAME)
            .envs(given.map(|value| (NAME, value)));
        String::from_utf8(child.output().unwrap().stdout).unwrap()
    };
    if std::env::var_os(CHILD).is_some() {
        vtrain::process::set_up();
        println!("{NAME}={}", std::env::var(NAME).unwrap());
    } else {
        assert!(said(None).contains(&format!("{NAME}=0\n")));
        assert!(said(Some("1")).contains(&format!("{NAME}=1\n")));
    }
}
