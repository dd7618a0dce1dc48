//! Upload of a finished adapter to the Hub: one commit, large files by Git LFS.
//!
//! <https://huggingface.co/docs/hub/api>, <https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md>
//!
//! 1. `POST /api/repos/create`: creates the repository, unless it exists
//! 2. `POST /api/models/{repo}/preupload/main`: returns which files go to LFS
//! 3. `POST /{repo}.git/info/lfs/objects/batch`, then `PUT` of the missing ones, and `POST` of their verification
//! 4. `POST /api/models/{repo}/commit/main`: small files in base64, large ones by their SHA-256
//!
//! Requests to a busy or unreachable server are retried with increasing pauses.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use base64::prelude::{BASE64_STANDARD, Engine};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use ureq::http::Response;
use ureq::{Agent, Body, RequestBuilder, typestate::WithBody};

use super::environment::Environment;
use super::is_repository;

/// `hub:` in a run file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Upload the finished adapter, its card and validation videos to the Hugging Face Hub, as the user of `HF_TOKEN`.
    pub push: bool,
    /// `user/name`. Created if it does not exist.
    pub repo: Option<String>,
    /// Create the repository as a private one.
    pub private: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            push: false,
            repo: None,
            private: true,
        }
    }
}

impl Config {
    /// Checks `repo`.
    ///
    /// # Errors
    /// Says what it must be.
    pub fn check_repo(&self) -> Result<(), String> {
        match &self.repo {
            None if self.push => Err("is required by push: a name such as user/my-adapter".into()),
            Some(repo) if !is_repository(repo) => Err(format!("'{repo}' is not a name such as user/my-adapter")),
            _ => Ok(()),
        }
    }
}

/// A file to upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Name in the repository, with `/` between folders.
    pub name: String,
    /// Path of the file on this machine.
    pub path: PathBuf,
}

const BRANCH: &str = "main";

/// Pauses before further attempts.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// Time-out for connecting and for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time-out for sending one file.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(3600);

/// Bytes of a file's beginning, from which the Hub distinguishes text and data.
const SAMPLE: usize = 512;

/// Bytes of a file that are hashed at a time.
const STRETCH: usize = 1 << 20;

/// Characters of an answer that are passed on.
const TOLD: usize = 200;

/// Checks that a push is possible, without contacting the server: called before a run that will push.
///
/// # Errors
/// Fails without a token, and in offline mode.
pub fn check() -> anyhow::Result<()> {
    leave(&Environment::of_process()).map(drop)
}

/// Returns the token to push with.
fn leave(environment: &Environment) -> anyhow::Result<String> {
    if let Some(name) = environment.offline {
        bail!("{name} is set");
    }
    let token = environment.token_to_write();
    token.context("there is no token: set HF_TOKEN to one that may write (https://huggingface.co/settings/tokens)")
}

/// Uploads files in one commit and returns the repository's address.
///
/// # Errors
/// Fails without a token or permission, and if the server stays unreachable; files on disk are never changed.
pub fn push(repo: &str, private: bool, summary: &str, files: &[Upload]) -> anyhow::Result<String> {
    let environment = Environment::of_process();
    let token = leave(&environment)?;
    environment.warn();
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(PATIENCE))
        .timeout_send_body(Some(UPLOAD_PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_recv_body(Some(PATIENCE));
    let hub = Hub {
        agent: config.build().into(),
        endpoint: environment.endpoint,
        token,
        repo: repo.into(),
    };
    hub.create(private)?;
    let files = files.iter().map(Prepared::of).collect::<anyhow::Result<Vec<_>>>()?;
    let large = hub.which_are_large(&files)?;
    for (file, _) in files.iter().zip(&large).filter(|(_, large)| **large) {
        hub.upload_large(file).with_context(|| file.upload.name.clone())?;
    }
    hub.commit(summary, &files, &large)?;
    Ok(format!("{}/{repo}", hub.endpoint))
}

/// A file with its size and hash.
struct Prepared<'a> {
    upload: &'a Upload,
    size: u64,
    sha256: String,
    sample: Vec<u8>,
}

impl<'a> Prepared<'a> {
    fn of(upload: &'a Upload) -> anyhow::Result<Self> {
        let read = || -> std::io::Result<_> {
            let (mut file, mut hasher, mut size) = (File::open(&upload.path)?, Sha256::new(), 0);
            let mut buffer = vec![0; STRETCH];
            loop {
                let read = file.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
            let mut sample = Vec::new();
            File::open(&upload.path)?.take(SAMPLE as u64).read_to_end(&mut sample)?;
            let sha256 = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            Ok((size, sha256, sample))
        };
        let (size, sha256, sample) = read().with_context(|| upload.path.display().to_string())?;
        Ok(Self {
            upload,
            size,
            sha256,
            sample,
        })
    }
}

struct Hub {
    agent: Agent,
    endpoint: String,
    token: String,
    repo: String,
}

/// A response.
struct Answer {
    status: u16,
    text: String,
}

impl Hub {
    fn create(&self, private: bool) -> anyhow::Result<()> {
        let (owner, name) = self.repo.split_once('/').context("a repository is owner/name")?;
        // huggingface_hub used to send the first, and now sends the second.
        let visibility = if private { "private" } else { "public" };
        let body =
            json!({"type": "model", "name": name, "organization": owner, "private": private, "visibility": visibility});
        let url = format!("{}/api/repos/create", self.endpoint);
        let answer = self.post(&url, "application/json", body.to_string().as_bytes())?;
        let refused = matches!(answer.status, 401..=403 | 409);
        match self.good(answer) {
            // It exists, or a token restricted to it may not create it.
            Err(_) if refused && self.exists()? => Ok(()),
            answer => answer.map(drop),
        }
    }

    fn exists(&self) -> anyhow::Result<bool> {
        let url = format!("{}/api/models/{}", self.endpoint, self.repo);
        let answer = self.again(|| Ok(self.signed(self.agent.get(&url)).call()))?;
        Ok(answer.status == 200)
    }

    fn which_are_large(&self, files: &[Prepared]) -> anyhow::Result<Vec<bool>> {
        let described = files.iter().map(
            |file| json!({"path": file.upload.name, "size": file.size, "sample": BASE64_STANDARD.encode(&file.sample)}),
        );
        let body = json!({"files": described.collect::<Vec<_>>()});
        let url = format!("{}/api/models/{}/preupload/{BRANCH}", self.endpoint, self.repo);
        let answer = self.good(self.post(&url, "application/json", body.to_string().as_bytes())?)?;
        let told = answer["files"]
            .as_array()
            .context("the Hub did not report which files are large")?;
        let large = |file: &Prepared| {
            let of = told.iter().find(|told| told["path"] == file.upload.name.as_str());
            of.is_some_and(|told| told["uploadMode"] == "lfs")
        };
        Ok(files.iter().map(large).collect())
    }

    fn upload_large(&self, file: &Prepared) -> anyhow::Result<()> {
        let object = json!({"oid": file.sha256, "size": file.size});
        let body = json!({
            "operation": "upload", "transfers": ["basic"], "hash_algo": "sha256", "ref": {"name": BRANCH}, "objects": [object],
        });
        let url = format!("{}/{}.git/info/lfs/objects/batch", self.endpoint, self.repo);
        let answer = self.good(self.post(&url, "application/vnd.git-lfs+json", body.to_string().as_bytes())?)?;
        let told = &answer["objects"][0];
        if let Some(message) = told["error"]["message"].as_str() {
            bail!("the Hub rejects it: {}", self.told(message));
        }
        let actions = &told["actions"];
        if actions["upload"].is_object() {
            let put = || {
                let opened = File::open(&file.upload.path).context("the file is gone")?;
                let request = with_headers(self.agent.put(address(&actions["upload"])?), &actions["upload"]);
                let request = request.header("Content-Length", file.size.to_string());
                Ok(request.send(opened)) // the address is signed: no token
            };
            self.good(self.again(put)?)?;
        }
        if actions["verify"].is_object() {
            let verify = || {
                let request = with_headers(self.agent.post(address(&actions["verify"])?), &actions["verify"]);
                let request = self.signed(request).content_type("application/vnd.git-lfs+json");
                Ok(request.send(object.to_string()))
            };
            self.good(self.again(verify)?)?;
        }
        Ok(())
    }

    /// Builds one line of JSON for each operation of the commit.
    fn commit(&self, summary: &str, files: &[Prepared], large: &[bool]) -> anyhow::Result<()> {
        let mut lines = json!({"key": "header", "value": {"summary": summary, "description": ""}}).to_string();
        for (file, large) in files.iter().zip(large) {
            let (name, path) = (&file.upload.name, &file.upload.path);
            let line = match large {
                true => json!({
                    "key": "lfsFile",
                    "value": {"path": name, "algo": "sha256", "oid": file.sha256, "size": file.size},
                }),
                false => {
                    let content = fs::read(path).with_context(|| path.display().to_string())?;
                    let content = BASE64_STANDARD.encode(content);
                    json!({"key": "file", "value": {"path": name, "encoding": "base64", "content": content}})
                }
            };
            lines += &format!("\n{line}");
        }
        let url = format!("{}/api/models/{}/commit/{BRANCH}", self.endpoint, self.repo);
        self.good(self.post(&url, "application/x-ndjson", lines.as_bytes())?)
            .map(drop)
    }

    fn post(&self, url: &str, kind: &str, body: &[u8]) -> anyhow::Result<Answer> {
        self.again(|| Ok(self.signed(self.agent.post(url)).content_type(kind).send(body)))
    }

    fn signed<Kind>(&self, request: RequestBuilder<Kind>) -> RequestBuilder<Kind> {
        request.header("Authorization", format!("Bearer {}", self.token))
    }

    /// Retries until there is an answer that another attempt would not change.
    fn again(&self, ask: impl Fn() -> anyhow::Result<Result<Response<Body>, ureq::Error>>) -> anyhow::Result<Answer> {
        let mut pauses = PAUSES.iter();
        loop {
            let answer = ask()?.and_then(|mut response| {
                let text = response.body_mut().read_to_string()?;
                let status = response.status().as_u16();
                Ok(Answer { status, text })
            });
            let busy = match &answer {
                Ok(answer) => answer.status == 429 || answer.status >= 500,
                Err(_) => true,
            };
            match pauses.next() {
                Some(pause) if busy => std::thread::sleep(*pause),
                _ => return answer.with_context(|| format!("{} does not answer", self.endpoint)),
            }
        }
    }

    /// Returns the server's message.
    fn told(&self, text: &str) -> String {
        text.replace(&self.token, "***").chars().take(TOLD).collect()
    }

    /// Returns the JSON of a successful answer; null without JSON.
    fn good(&self, answer: Answer) -> anyhow::Result<Value> {
        let json: Value = serde_json::from_str(&answer.text).unwrap_or_default();
        let why = json["error"]
            .as_str()
            .unwrap_or(&answer.text)
            .replace(&self.token, "***");
        let why: String = why.chars().take(TOLD).collect();
        match answer.status {
            200..300 => Ok(json),
            401 | 403 => bail!(
                "the Hub refuses ({}): {why}; set HF_TOKEN to a token that may write to {}",
                answer.status,
                self.repo
            ),
            status => bail!("the Hub answers {status}: {why}"),
        }
    }
}

fn address(action: &Value) -> anyhow::Result<&str> {
    action["href"].as_str().context("the Hub gave no address to upload to")
}

fn with_headers(request: RequestBuilder<WithBody>, action: &Value) -> RequestBuilder<WithBody> {
    let headers = action["header"].as_object().into_iter().flatten();
    headers.fold(request, |request, (name, value)| match value.as_str() {
        Some(value) => request.header(name, value),
        None => request,
    })
}

/// Upload of a file below `folder`, given its name in the repository.
pub fn below(folder: &Path, name: &str) -> Upload {
    Upload {
        name: name.into(),
        path: folder.join(name),
    }
}
