//! The Hub, against a server on this machine that implements its endpoints.

mod environment; // its variables, against huggingface_hub

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox/cogvideox-2b")
}

/// An adapter for the checkpoint.
fn adapter() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cogvideox/lora/pytorch_lora_weights.safetensors")
}

/// Serves the checkpoint as `someone/tiny`, and remembers what was asked.
fn serve() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let log = log.clone();
            std::thread::spawn(move || answer(stream, &log));
        }
    });
    (address, asked)
}

fn answer(mut stream: TcpStream, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_string());
        }
        let path = lines[0].split(' ').nth(1).unwrap().to_string();
        let range = lines
            .iter()
            .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(String::from));
        let token = lines
            .iter()
            .any(|line| line.to_lowercase() == "authorization: bearer secret-token");
        log.lock()
            .unwrap()
            .push(format!("{path}{}", if token { " with token" } else { "" }));
        stream.write_all(&response(&path, range.as_deref())).unwrap();
    }
}

fn response(path: &str, range: Option<&str>) -> Vec<u8> {
    let head = |status: &str, more: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{more}\r\n", body.len());
        [head.as_bytes(), body].concat()
    };
    if path == "/api/models/someone/tiny/revision/main" || path == "/api/models/someone/tiny" {
        let mut files = vec![
            "README.md".to_string(),
            "transformer/diffusion_pytorch_model.fp16.safetensors".into(),
        ];
        list(&checkpoint(), "", &mut files);
        let siblings: Vec<_> = files
            .iter()
            .map(|file| serde_json::json!({"rfilename": file}))
            .collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return head("200 OK", "Content-Type: application/json\r\n", body.as_bytes());
    }
    if path == "/api/models/someone/variants/revision/main" {
        let mut files = Vec::new();
        list(&checkpoint(), "", &mut files);
        let mut named = Vec::new();
        for file in files {
            let variant = |name: &str| file.replace(".safetensors", &format!(".{name}.safetensors"));
            if file.starts_with("transformer/") && file.contains(".safetensors") {
                named.extend([variant("fp16"), variant("bf16")]);
            } else if file.starts_with("vae/") && file.contains(".safetensors") {
                named.extend([file.clone(), variant("fp16")]);
            } else {
                named.push(file);
            }
        }
        let siblings: Vec<_> = named
            .iter()
            .map(|file| serde_json::json!({"rfilename": file}))
            .collect();
        let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return head("200 OK", "Content-Type: application/json\r\n", body.as_bytes());
    }
    let adapters = [
        (
            "style",
            vec!["pytorch_lora_weights.safetensors", "sub/other.safetensors", "README.md"],
        ),
        ("several", vec!["a.safetensors", "b.safetensors"]),
        (
            "peft",
            vec!["adapter_config.json", "adapter_model.safetensors", "other.safetensors"],
        ),
    ];
    for (name, files) in adapters {
        if path == format!("/api/models/someone/{name}/revision/main") || path == format!("/api/models/someone/{name}")
        {
            let siblings: Vec<_> = files
                .iter()
                .map(|file| serde_json::json!({"rfilename": file}))
                .collect();
            let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
            return head("200 OK", "Content-Type: application/json\r\n", body.as_bytes());
        }
    }
    let adapter = path.starts_with("/someone/style/resolve/main/").then(adapter);
    let peft = path.strip_prefix("/someone/peft/resolve/main/").map(|file| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lora/formats/peft_cogvideox");
        folder.join(file)
    });
    let variant = path.strip_prefix("/someone/variants/resolve/main/");
    let file = path
        .strip_prefix("/someone/tiny/resolve/main/")
        .or(variant)
        .map(|file| checkpoint().join(file.replace(".fp16.", ".").replace(".bf16.", ".")))
        .or(adapter)
        .or(peft);
    let Some(bytes) = file.and_then(|file| std::fs::read(file).ok()) else {
        return head("404 Not Found", "", b"no such thing");
    };
    let etag: u64 = bytes.iter().fold(path.len() as u64, |hash, byte| {
        hash.wrapping_mul(31).wrapping_add(u64::from(*byte))
    });
    let facts = format!("ETag: \"{etag:016x}\"\r\nx-repo-commit: {COMMIT}\r\nAccept-Ranges: bytes\r\n");
    match range.and_then(|range| {
        range
            .split_once('-')
            .map(|(a, b)| (a.parse::<usize>(), b.parse::<usize>()))
    }) {
        Some((Ok(from), to)) => {
            let to = to.unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
            let facts = format!("{facts}Content-Range: bytes {from}-{to}/{}\r\n", bytes.len());
            head("206 Partial Content", &facts, &bytes[from..=to])
        }
        _ => head("200 OK", &facts, &bytes),
    }
}

fn list(folder: &Path, below: &str, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{below}{}", path.file_name().unwrap().to_str().unwrap());
        match path.is_dir() {
            true => list(&path, &format!("{name}/"), files),
            false => files.push(name),
        }
    }
}

fn sample(home: &Path, endpoint: &str, model: &str, offline: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
    command.args([
        "-v",
        "sample",
        "--model",
        model,
        "--prompt",
        "x",
        "--num-frames",
        "1",
        "--height",
        "32",
    ]);
    command.args([
        "--width",
        "48",
        "--steps",
        "1",
        "--guidance-scale",
        "1",
        "--dtype",
        "f32",
        "--device",
        "cpu",
    ]);
    command.arg("--output").arg(home.join("out.gif"));
    command
        .env("HF_HOME", home)
        .env("HF_ENDPOINT", endpoint)
        .env("HF_TOKEN", "secret-token");
    if offline {
        command.env("HF_HUB_OFFLINE", "1");
    }
    command.output().unwrap()
}

#[test]
fn a_checkpoint_comes_from_the_hub_once_and_then_from_the_cache() {
    let (endpoint, asked) = serve();
    let home = tempfile::tempdir().unwrap();
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();

    let unseen = sample(home.path(), &endpoint, "someone/tiny", true);
    assert_eq!(unseen.status.code(), Some(4));
    assert!(said(&unseen).contains("HF_HUB_OFFLINE is set"), "{}", said(&unseen));
    assert!(asked.lock().unwrap().is_empty());

    let first = sample(home.path(), &endpoint, "someone/tiny", false);
    assert_eq!(first.status.code(), Some(0), "{}", said(&first));
    let requests = std::mem::take(&mut *asked.lock().unwrap());
    assert!(
        requests.iter().all(|request| request.ends_with(" with token")),
        "{requests:?}"
    );
    assert!(
        !requests
            .iter()
            .any(|request| request.contains("README") || request.contains("fp16")),
        "{requests:?}"
    );
    assert!(!said(&first).contains("secret-token"));

    let second = sample(home.path(), &endpoint, "someone/tiny", false);
    assert_eq!(second.status.code(), Some(0), "{}", said(&second));
    assert!(
        !asked
            .lock()
            .unwrap()
            .iter()
            .any(|request| request.contains("/resolve/")),
        "fetched again"
    );

    let offline = sample(home.path(), "http://127.0.0.1:1", "someone/tiny", true);
    assert_eq!(offline.status.code(), Some(0), "{}", said(&offline));

    let stranger = sample(home.path(), &endpoint, "someone/else", false);
    assert_eq!(stranger.status.code(), Some(4));
    assert!(
        said(&stranger).contains("someone/else, revision main, on the Hugging Face Hub"),
        "{}",
        said(&stranger)
    );
}

#[test]
fn an_adapter_comes_from_the_hub_by_its_repository_or_its_file() {
    let (endpoint, asked) = serve();
    let home = tempfile::tempdir().unwrap();
    let inspect = |name: &str, offline: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        command
            .args(["lora", "merge", "--model"])
            .arg(checkpoint())
            .args(["--lora", name]);
        command.arg(home.path().join(format!("merged-{}", name.len())));
        command
            .env("HF_HOME", home.path())
            .env("HF_ENDPOINT", &endpoint)
            .env("HF_TOKEN", "secret-token");
        if offline {
            command.env("HF_HUB_OFFLINE", "1");
        }
        let output = command.output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let offline = inspect("someone/style", true);
    assert_eq!(offline.0, Some(4));
    assert!(offline.1.contains("HF_HUB_OFFLINE is set"), "{}", offline.1);
    let whole = inspect("someone/style=0.5", false);
    assert_eq!(whole.0, Some(0), "{}", whole.1);
    let file = inspect("someone/style/sub/other.safetensors", false);
    assert_eq!(file.0, Some(0), "{}", file.1);
    let several = inspect("someone/several", false);
    assert_eq!(several.0, Some(4));
    assert!(
        several
            .1
            .contains("append the name of one: a.safetensors, b.safetensors"),
        "{}",
        several.1
    );
    let none = inspect("someone/style/x/y.bin", false);
    assert!(
        none.1.contains("no such file, and not the name of a Hub repository"),
        "{}",
        none.1
    );
    assert!(
        asked
            .lock()
            .unwrap()
            .iter()
            .all(|request| request.ends_with(" with token"))
    );
}

#[test]
fn a_variant_comes_from_the_hub_without_the_others() {
    let (endpoint, asked) = serve();
    let home = tempfile::tempdir().unwrap();
    let sample = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        command.args([
            "sample",
            "--model",
            "someone/variants",
            "--prompt",
            "x",
            "--num-frames",
            "1",
            "--height",
            "32",
        ]);
        command.args([
            "--width",
            "48",
            "--steps",
            "1",
            "--guidance-scale",
            "1",
            "--dtype",
            "f32",
            "--device",
            "cpu",
        ]);
        command.arg("--output").arg(home.path().join("out.gif")).args(more);
        command.env("HF_HOME", home.path()).env("HF_ENDPOINT", &endpoint);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said, std::mem::take(&mut *asked.lock().unwrap()))
    };
    let (code, said, _) = sample(&[]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("transformer/: ") && said.contains("bf16, fp16"), "{said}");
    let (code, said, asked) = sample(&["--variant", "fp16"]);
    assert_eq!(code, Some(0), "{said}");
    let resolved: Vec<&String> = asked
        .iter()
        .filter(|path| path.contains("/resolve/") && path.contains("safetensors"))
        .collect();
    let fp16 = |path: &&&String| path.contains(".fp16.");
    assert!(resolved.iter().filter(fp16).count() >= 4, "{resolved:?}"); // each asked for its facts and its bytes
    for path in resolved.iter().filter(|path| !fp16(path)) {
        assert!(path.contains("/text_encoder/"), "{path} is not needed");
    }
}

#[test]
fn an_adapter_of_peft_comes_with_its_settings_and_again_without_the_hub() {
    let (endpoint, _) = serve();
    let home = tempfile::tempdir().unwrap();
    for offline in ["0", "1"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vtrain"));
        command
            .args(["lora", "merge", "--lora", "someone/peft", "--model"])
            .arg(checkpoint());
        command.arg(home.path().join(format!("merged-{offline}")));
        command
            .env("HF_HOME", home.path())
            .env("HF_ENDPOINT", &endpoint)
            .env("HF_HUB_OFFLINE", offline);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains("guess"), "{said}");
        // The adapter is of another checkpoint of the family, so that it is read whole and then refused.
        println!("{said}");
        assert!(output.status.success() || said.contains("the adapter of "), "{said}");
    }
}
