//! Files of another format than their names suggest, and single files in place of a directory: each is named correctly.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use vtrain::lora::file;
use vtrain::lora::merge::Folder;
use vtrain::magic;
use vtrain::models::{self, FamilyName, registry};
use vtrain::nn::Weights;

/// Pointer left by `git clone` without Git LFS.
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 9984000\n";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}

fn sample(model: &Path, lora: Option<&Path>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
    command.args([
        "sample",
        "--prompt",
        "x",
        "--num-frames",
        "1",
        "--height",
        "32",
        "--width",
        "48",
        "--steps",
        "1",
    ]);
    command.args(["--guidance-scale", "1", "--dtype", "f32", "--device", "cpu"]);
    command.arg("--model").arg(model);
    if let Some(lora) = lora {
        command.arg("--lora").arg(lora);
    }
    let out = std::env::temp_dir().join(format!("vtrain-magic-{}.gif", std::process::id()));
    command.arg("--output").arg(&out);
    let output = command.output().unwrap();
    let _ = std::fs::remove_file(out);
    output
}

#[test]
fn beginnings_of_files_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let cases: [(&[u8], &str); 9] = [
        (POINTER.as_bytes(), "a pointer of Git LFS"),
        (b"/annex/objects/SHA256E-s1--0", "git-annex"),
        (b"PK\x03\x04\0\0archive/data.pkl", "torch.save"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "torch.save"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\xef\xbb\xbf\n<!doctype html><html>", "a web page"),
        (b"<HTML><body>", "a web page"),
        (b"", "empty"),
    ];
    for (bytes, expected) in cases {
        std::fs::write(&path, bytes).unwrap();
        let told = magic::explain(&path).unwrap();
        assert!(told.contains(expected), "{expected}: {told}");
        // Readers of weights or adapters report it, with the file's name.
        let weights = Weights::open(folder.path(), DType::F32, &Device::Cpu)
            .map(drop)
            .unwrap_err();
        let merged = Folder::open(folder.path()).map(drop).unwrap_err();
        let adapter = file::read(&path, &registry::names()).map(drop).unwrap_err();
        for message in [weights, merged, adapter].map(|error| format!("{error:#}")) {
            assert!(
                message.contains(told) && message.contains("model.safetensors"),
                "{message}"
            );
        }
    }
    // The last is a header of 640 bytes.
    for bytes in [
        &b"{}"[..],
        b"\x08\0\0\0\0\0\0\0{}      ",
        b"PK",
        b"\x80\x02\0\0\0\0\0\0{}",
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(magic::explain(&path), None);
    }
    assert_eq!(magic::explain(&folder.path().join("nothing")), None);
}

#[test]
fn a_clone_without_git_lfs_is_told_by_each_file_that_is_a_pointer() {
    let folder = tempfile::tempdir().unwrap();
    for (model, files) in [
        (
            "wan/wan-2.1-t2v",
            &[
                "tokenizer/tokenizer.json",
                "text_encoder/model.safetensors",
                "transformer/config.json",
            ][..],
        ),
        (
            "cogvideox/cogvideox-2b",
            &[
                "model_index.json",
                "scheduler/scheduler_config.json",
                "tokenizer/spiece.model",
            ],
        ),
    ] {
        for file in files {
            let at = folder.path().join(file.replace('/', "-"));
            copy(&fixture(model), &at);
            if *file == "tokenizer/spiece.model" {
                let _ = std::fs::remove_file(at.join("tokenizer/tokenizer.json"));
            }
            std::fs::write(at.join(file), POINTER).unwrap();
            let output = sample(&at, None);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(4), "{file}: {said}");
            assert!(said.contains("git lfs pull") && said.contains(file), "{file}: {said}");
        }
    }
}

#[test]
fn pickles_alone_are_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("diffusion_pytorch_model.bin"), b"PK\x03\x04").unwrap();
    let message = Weights::open(folder.path(), DType::F32, &Device::Cpu)
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("no safetensors file, only diffusion_pytorch_model.bin"),
        "{message}"
    );
    assert!(message.contains("save_pretrained"), "{message}");
}

#[test]
fn a_single_file_given_as_a_model_is_said_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wan2.1_t2v_1.3B_bf16.safetensors");
    let weights = [(
        "model.diffusion_model.blocks.0.self_attn.q.weight",
        Tensor::ones((2, 2), DType::F32, &Device::Cpu).unwrap(),
    )];
    std::fs::write(&path, safetensors::serialize(weights, None).unwrap()).unwrap();
    let adapter = fixture("wan/lora/pytorch_lora_weights.safetensors");
    let pointer = folder.path().join("pointer.safetensors");
    std::fs::write(&pointer, POINTER).unwrap();
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "a model?").unwrap();
    let cases = [
        (path.as_path(), "is a single file of weights, as ComfyUI takes it"),
        (&adapter, "is an adapter file, which --lora and lora.init take"),
        (&pointer, "a pointer of Git LFS"),
        (&text, "is a file; a model is a diffusers directory"),
        (&folder.path().join("gone.safetensors"), "no such file"),
        (Path::new("owner/gone.gguf"), "no such file"),
    ];
    for (model, expected) in cases {
        let output = sample(model, None);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(
            said.contains(expected) && said.contains(model.to_str().unwrap()),
            "{expected}: {said}"
        );
    }
}

#[test]
fn another_layout_or_a_part_given_as_a_model_is_said_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let told = |path: &Path| {
        let opened = models::open(path, FamilyName::Auto);
        format!("{:#}", opened.map(drop).unwrap_err())
    };
    assert!(told(&fixture("wan/wan-2.1-t2v/transformer")).contains("a part of one; give the folder above it"));
    std::fs::write(folder.path().join("Wan2.1_VAE.pth"), b"PK\x03\x04").unwrap();
    let message = told(folder.path());
    assert!(
        message.contains("Wan2.1_VAE.pth") && message.contains("another program"),
        "{message}"
    );
}
