//! The Hub's variables of the environment, as `huggingface_hub` documents and reads them.
//!
//! <https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>; facts: its `constants.py` and
//! `utils/_auth.py`. Proxies (`ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`) are ureq's.

use std::path::PathBuf;

/// Address of the Hub, unless `HF_ENDPOINT` is set.
const ENDPOINT: &str = "https://huggingface.co";

/// Variables that have an effect in `huggingface_hub` but not here, and why.
const UNHEEDED: [(&str, &str); 8] = [
    ("HF_HUB_ETAG_TIMEOUT", NO_TIMEOUT),
    ("HF_HUB_DOWNLOAD_TIMEOUT", NO_TIMEOUT),
    ("HF_HUB_DISABLE_SYMLINKS", "files of the cache are links to its blobs"),
    ("HF_HUB_ENABLE_HF_TRANSFER", PLAIN_HTTP),
    ("HF_XET_HIGH_PERFORMANCE", PLAIN_HTTP),
    (
        "HF_OIDC_RESOURCE",
        "tokens are not requested by OpenID Connect; set HF_TOKEN",
    ),
    ("HUGGINGFACE_CO_STAGING", "set HF_ENDPOINT to the server that is meant"),
    ("HF_HUB_LOCAL_DIR_AUTO_SYMLINK_THRESHOLD", "files go only to the cache"),
];

const NO_TIMEOUT: &str = "a download waits for as long as the connection stands";

const PLAIN_HTTP: &str = "files are fetched by plain HTTP";

/// Proxy variables, by precedence.
const PROXIES: [&str; 6] = [
    "ALL_PROXY",
    "all_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
];

/// The Hub's settings in the environment.
#[derive(Clone)]
pub struct Environment {
    /// `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE`, else `hub` in `HF_HOME`, which defaults to `~/.cache/huggingface`
    /// or a folder in `XDG_CACHE_HOME`.
    pub cache: PathBuf,
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// Name of the variable that forbids requests: `HF_HUB_OFFLINE`, or else `TRANSFORMERS_OFFLINE`.
    pub offline: Option<&'static str>,
    /// True to show the progress of downloads: not with `HF_HUB_DISABLE_PROGRESS_BARS`.
    pub progress: bool,
    /// `HF_HUB_USER_AGENT_ORIGIN`.
    pub origin: Option<String>,
    /// `HF_TOKEN`, else `HUGGING_FACE_HUB_TOKEN`, else the content of the file `HF_TOKEN_PATH` (`token` in `HF_HOME`).
    /// Must never be printed or written.
    token: Option<String>,
    /// True to send the token with requests that only read: not with `HF_HUB_DISABLE_IMPLICIT_TOKEN`.
    implicit: bool,
    /// Variables that are set but ignored, and why.
    pub unheeded: Vec<(&'static str, String)>,
}

impl Environment {
    /// Reads the process's environment.
    pub fn of_process() -> Self {
        Self::read(|name| std::env::var(name).ok())
    }

    /// Reads an environment. Empty variables count as unset.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| Some(PathBuf::from(expanded(&get(name)?, &variable)));
        let is_true = |name: &str| get(name).is_some_and(|value| is_true(&value));
        let home = path("HF_HOME").unwrap_or_else(|| {
            let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| PathBuf::from(expanded("~/.cache", &variable)));
            caches.join("huggingface")
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token_path = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let token = get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(|| std::fs::read_to_string(token_path).ok());
        let clean = |token: String| token.replace(['\r', '\n'], "").trim().to_string();
        // The first one decides, even if it is false.
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
            .into_iter()
            .find(|name| get(name).is_some());
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        Self {
            cache: cache.unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim().trim_end_matches('/').into(),
            offline: offline.filter(|name| is_true(name)),
            progress: !is_true("HF_HUB_DISABLE_PROGRESS_BARS"),
            origin: get("HF_HUB_USER_AGENT_ORIGIN"),
            token: token.map(clean).filter(|token| !token.is_empty()),
            implicit: !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN"),
            unheeded: unheeded(&get),
        }
    }

    /// Returns the token of a request that only reads.
    pub fn token_to_read(&self) -> Option<String> {
        self.token.clone().filter(|_| self.implicit)
    }

    /// Returns the token of a request that writes.
    pub fn token_to_write(&self) -> Option<String> {
        self.token.clone()
    }

    /// Logs variables that are set but ignored.
    pub fn warn(&self) {
        for (name, why) in &self.unheeded {
            log::warn!("{name} is set, but has no effect: {why}");
        }
    }
}

fn unheeded(get: &impl Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let off = |value: &str| matches!(value.to_lowercase().as_str(), "0" | "off" | "no" | "false");
    let mut unheeded: Vec<(&str, String)> = UNHEEDED
        .iter()
        .filter(|(name, _)| get(name).is_some_and(|value| !off(&value)))
        .map(|(name, why)| (*name, (*why).to_string()))
        .collect();
    let proxy = PROXIES.into_iter().find_map(|name| Some((name, get(name)?)));
    if let Some((name, _)) = proxy.filter(|(_, address)| ureq::Proxy::new(address).is_err()) {
        unheeded.push((
            name,
            "it is not the address of a proxy, such as http://HOST:PORT".into(),
        ));
    }
    unheeded
}

/// Parses a switch as `huggingface_hub` does.
fn is_true(value: &str) -> bool {
    matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

/// Expands a leading `~`, and `$NAME` or `${NAME}`; unset names are kept.
fn expanded(path: &str, variable: &impl Fn(&str) -> Option<String>) -> String {
    let home = || variable("HOME").or_else(|| variable("USERPROFILE"));
    let path = match (path.strip_prefix('~'), home()) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
        _ => path.to_string(),
    };
    let (mut told, mut rest) = (String::new(), path.as_str());
    while let Some((before, behind)) = rest.split_once('$') {
        told += before;
        let braced = behind.strip_prefix('{').and_then(|behind| behind.split_once('}'));
        let (name, after) = braced.unwrap_or_else(|| {
            let end = behind.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            behind.split_at(end.unwrap_or(behind.len()))
        });
        match variable(name).filter(|_| !name.is_empty()) {
            Some(value) => told += &value,
            None => told += &rest[before.len()..rest.len() - after.len()],
        }
        rest = after;
    }
    told + rest
}
