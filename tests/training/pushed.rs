//! A finished run is pushed to the Hub: a server on this machine implements its endpoints and Git LFS'.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{FINAL, Run, model, shapes, stderr};

pub const TOKEN: &str = "hf_secretsecretsecret";

/// Requests to a server, and their contents.
#[derive(Default)]
pub struct Seen {
    /// `POST /path`, in order.
    pub asked: Vec<String>,
    /// Those whose token was not ours, or that had it and should not.
    pub unsigned: Vec<String>,
    pub repository: Option<Value>,
    /// By SHA-256.
    pub large: BTreeMap<String, Vec<u8>>,
    /// Lines of the commits.
    pub commits: Vec<Vec<Value>>,
    /// Files that were announced, each with its size and the length of its sample in base64.
    pub announced: BTreeMap<String, (u64, usize)>,
    /// So many answers are 503 before the first other one.
    pub busy: usize,
    /// Every answer is this one.
    pub refuses: Option<u16>,
    /// Git LFS' error for every file.
    pub lfs_error: Option<String>,
}

pub type Shared = Arc<Mutex<Seen>>;

pub fn serve(seen: Seen) -> (String, Shared) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(seen));
    let (shared, own) = (seen.clone(), address.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (shared, own) = (shared.clone(), own.clone());
            std::thread::spawn(move || converse(stream, &own, &shared));
        }
    });
    (address, seen)
}

fn converse(mut stream: TcpStream, own: &str, seen: &Shared) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_string());
        }
        let header = |name: &str| {
            head.iter().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then(|| value.to_string())
            })
        };
        let length = header("content-length").map(|length| length.parse().unwrap());
        assert!(
            head[0].starts_with("GET ") || length.is_some(),
            "a body of known length"
        );
        let length = length.unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let request = head[0].rsplit_once(' ')?.0.to_string();
        let signed = header("authorization").as_deref() == Some(&format!("Bearer {TOKEN}"));
        let (status, answer) = respond(&request, signed, &body, own, &mut seen.lock().unwrap());
        let answer = answer.to_string();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n", answer.len());
        stream.write_all((head + &answer).as_bytes()).ok()?;
    }
}

fn respond(request: &str, signed: bool, body: &[u8], own: &str, seen: &mut Seen) -> (u16, Value) {
    seen.asked.push(request.to_string());
    let lfs = request.starts_with("PUT /storage/");
    if signed == lfs {
        seen.unsigned.push(request.to_string());
    }
    if let Some(status) = seen.refuses {
        return (status, json!({"error": format!("no leave for Bearer {TOKEN}")}));
    }
    if seen.busy > 0 {
        seen.busy -= 1;
        return (503, json!({"error": "busy"}));
    }
    let sent = || serde_json::from_slice::<Value>(body).unwrap();
    match request {
        "POST /api/repos/create" => match seen.repository.replace(sent()) {
            None => (200, json!({"url": "made"})),
            Some(_) => (409, json!({"error": "You already created this model repo"})),
        },
        "GET /api/models/somebody/style" => match &seen.repository {
            Some(_) => (200, json!({"id": "somebody/style"})),
            None => (404, json!({"error": "Repository not found"})),
        },
        "POST /api/models/somebody/style/preupload/main" => {
            let sent = sent();
            let files = sent["files"].as_array().unwrap().iter().map(|file| {
                let path = file["path"].as_str().unwrap();
                let sample = file["sample"].as_str().unwrap().len();
                seen.announced
                    .insert(path.into(), (file["size"].as_u64().unwrap(), sample));
                let large = path.ends_with(".safetensors") || path.ends_with(".mp4");
                json!({"path": path, "uploadMode": if large { "lfs" } else { "regular" }, "shouldIgnore": false})
            });
            (200, json!({"files": files.collect::<Vec<_>>()}))
        }
        "POST /somebody/style.git/info/lfs/objects/batch" => {
            let object = sent()["objects"][0].clone();
            let oid = object["oid"].as_str().unwrap();
            let mut answer = json!({"objects": [{"oid": oid, "size": object["size"]}]});
            if let Some(message) = &seen.lfs_error {
                answer["objects"][0]["error"] = json!({"code": 422, "message": message});
                return (200, answer);
            }
            if !seen.large.contains_key(oid) {
                answer["objects"][0]["actions"] = json!({
                    "upload": {"href": format!("{own}/storage/{oid}"), "header": {"x-signed": "yes"}},
                    "verify": {"href": format!("{own}/verify")},
                });
            }
            (200, answer)
        }
        "POST /verify" => {
            let object = sent();
            let there = &seen.large[object["oid"].as_str().unwrap()];
            assert_eq!(there.len() as u64, object["size"].as_u64().unwrap());
            (200, json!({}))
        }
        "POST /api/models/somebody/style/commit/main" => {
            let text = std::str::from_utf8(body).unwrap();
            seen.commits
                .push(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect());
            (200, json!({"commitUrl": "there"}))
        }
        storage => match storage.strip_prefix("PUT /storage/") {
            Some(oid) => {
                seen.large.insert(oid.to_string(), body.to_vec());
                (200, Value::Null)
            }
            None => (404, json!({"error": format!("unknown: {storage}")})),
        },
    }
}

/// A short run that is to be pushed.
fn run(endpoint: &str) -> (Run, Output) {
    let run = Run::new("");
    let data = run.folder.path().join("data");
    shapes(&data, 2);
    let text = format!(
        "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
         datasets: [{{path: {}, buckets: [[9, 32, 48]]}}]\nlora: {{rank: 2}}\ntrain: {{steps: 2}}\n\
         checkpoint: {{every: 1, comfyui: true}}\n\
         validation: {{every: 2, prompts: [{{prompt: a ball, num_frames: 1, height: 32, width: 48, steps: 1}}]}}\n\
         hub: {{push: true, repo: somebody/style}}\n",
        model().display(),
        data.display(),
    );
    fs::write(run.file(), text).unwrap();
    let output = push(&run, endpoint);
    (run, output)
}

fn push(run: &Run, endpoint: &str) -> Output {
    let mut command = run.command(&["-v"]);
    command
        .env("HF_ENDPOINT", endpoint)
        .env("HF_TOKEN", TOKEN)
        .env_remove("HF_HUB_OFFLINE");
    command.output().unwrap()
}

/// No file of a run and no line that it printed has the token.
fn keeps_the_secret(run: &Run, output: &Output) {
    fn look(folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => look(&path),
                false => {
                    let bytes = fs::read(&path).unwrap();
                    let found = bytes.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes());
                    assert!(!found, "{} has the token", path.display());
                }
            }
        }
    }
    look(run.folder.path());
    assert!(!stderr(output).contains(TOKEN));
    assert!(!String::from_utf8_lossy(&output.stdout).contains(TOKEN));
}

#[test]
fn a_finished_run_is_pushed_in_one_commit_and_again_without_uploading_again() {
    let busy = Seen {
        busy: 2,
        ..Seen::default()
    };
    let (endpoint, seen) = serve(busy);
    let (run, output) = run(&endpoint);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stderr(&output).contains(&format!("pushed to {endpoint}/somebody/style")),
        "{}",
        stderr(&output)
    );
    keeps_the_secret(&run, &output);

    let there = std::mem::take(&mut seen.lock().unwrap().asked);
    assert!(
        seen.lock().unwrap().unsigned.is_empty(),
        "{:?}",
        seen.lock().unwrap().unsigned
    );
    assert_eq!(
        there.iter().filter(|asked| asked.ends_with("create")).count(),
        3,
        "{there:?}"
    ); // twice busy
    assert_eq!(seen.lock().unwrap().repository.as_ref().unwrap()["private"], true);
    {
        let seen = seen.lock().unwrap();
        let [commit] = seen.commits.as_slice() else {
            panic!("{} commits", seen.commits.len())
        };
        assert_eq!(commit[0]["key"], "header");
        let mut names = Vec::new();
        for line in &commit[1..] {
            let value = &line["value"];
            let name = value["path"].as_str().unwrap();
            let on_disk = fs::read(run.out().join(name)).unwrap();
            match line["key"].as_str().unwrap() {
                "lfsFile" => assert!(seen.large[value["oid"].as_str().unwrap()] == on_disk, "{name}"),
                "file" => assert_eq!(name, "README.md"),
                other => panic!("{other}"),
            }
            names.push(name.to_string());
        }
        names.sort();
        let expected = [
            "README.md",
            "comfyui_lora.safetensors",
            FINAL,
            "validation/step-000002/00-a-ball.mp4",
        ];
        assert_eq!(names, expected);
    }
    for step in ["step-000001", "step-000002"] {
        assert!(
            run.out()
                .join("checkpoints")
                .join(step)
                .join("comfyui_lora.safetensors")
                .is_file()
        );
    }

    let again = push(&run, &endpoint);
    assert_eq!(again.status.code(), Some(0), "{}", stderr(&again));
    assert_eq!(seen.lock().unwrap().commits.len(), 2);
    let asked = seen.lock().unwrap().asked.clone();
    assert!(!asked.iter().any(|asked| asked.starts_with("PUT")), "{asked:?}");

    // A file is read by the MiB, and 512 bytes of it are shown before it is sent.
    let video = run.out().join("validation/step-000002/00-a-ball.mp4");
    for bytes in [511, 512, 513, (1 << 20) - 1, (1 << 20) + 7, (2 << 20) + 1] {
        let content: Vec<u8> = (0..bytes).map(|i: usize| (i % 251) as u8).collect();
        fs::write(&video, &content).unwrap();
        let output = push(&run, &endpoint);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let seen = seen.lock().unwrap();
        let oid: String = Sha256::digest(&content)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert!(
            seen.large.get(&oid).is_some_and(|sent| *sent == content),
            "{bytes} bytes"
        );
        let shown = bytes.min(512).div_ceil(3) * 4;
        assert_eq!(
            seen.announced["validation/step-000002/00-a-ball.mp4"],
            (bytes as u64, shown)
        );
    }
}

#[test]
fn a_run_whose_push_fails_is_done_all_the_same_and_says_what_to_do() {
    let refusing = Seen {
        refuses: Some(401),
        ..Seen::default()
    };
    let (endpoint, seen) = serve(refusing);
    let (run, output) = run(&endpoint);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(
        said.contains("was not pushed to somebody/style: the Hub refuses (401): no leave for Bearer ***"),
        "{said}"
    );
    assert!(
        said.contains("set HF_TOKEN to a token that may write to somebody/style"),
        "{said}"
    );
    assert_eq!(
        seen.lock().unwrap().asked.len(),
        2,
        "a refusal is final, if the repository is not there either"
    );
    assert!(run.out().join(FINAL).is_file() && run.out().join("README.md").is_file());
    keeps_the_secret(&run, &output);
}

/// Git LFS answers 200, and says of the file itself what is wrong: with the token here, as a server that repeats its request.
#[test]
fn what_git_lfs_says_of_a_file_is_told_without_the_token() {
    let refusing = Seen {
        lfs_error: Some(format!("no room for Bearer {TOKEN}, {}", "x".repeat(200))),
        ..Seen::default()
    };
    let (endpoint, _seen) = serve(refusing);
    let (run, output) = run(&endpoint);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("was not pushed") && said.contains("the Hub rejects it: no room for Bearer ***"),
        "{said}"
    );
    // 200 characters of it are told.
    let shown = 200 - "no room for Bearer ***, ".len();
    assert!(
        said.contains(&"x".repeat(shown)) && !said.contains(&"x".repeat(shown + 1)),
        "{said}"
    );
    keeps_the_secret(&run, &output);
}

#[test]
fn a_repository_is_made_as_private_as_the_run_file_says() {
    let (endpoint, seen) = serve(Seen::default());
    let run = Run::new("");
    let data = run.folder.path().join("data");
    shapes(&data, 1);
    let text = format!(
        "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
         datasets: [{{path: data, buckets: [[9, 32, 48]]}}]\nlora: {{rank: 2}}\ntrain: {{steps: 1}}\n\
         hub: {{push: true, repo: somebody/style, private: false}}\n",
        model().display(),
    );
    fs::write(run.file(), text).unwrap();
    let output = push(&run, &endpoint);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let seen = seen.lock().unwrap();
    let asked = seen.repository.as_ref().unwrap();
    assert_eq!(
        (&asked["private"], &asked["visibility"]),
        (&json!(false), &json!("public"))
    );
}
