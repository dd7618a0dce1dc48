//! The Hugging Face Hub: checkpoints and adapters from there, finished adapters to there.
//!
//! `HF_HOME` says where the cache is, `HF_TOKEN` (or the file that `hf auth login` leaves) who asks, `HF_ENDPOINT` which
//! server answers, and `HF_HUB_OFFLINE=1` that none is asked.

pub mod fetch;
pub mod push;

/// Whether this is `owner/name`.
pub fn is_repository(name: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    name.split_once('/')
        .is_some_and(|(owner, name)| plain(owner) && plain(name))
}

/// Who asks. Nothing that is printed or written may hold it.
fn token() -> Option<String> {
    let named = std::env::var("HF_TOKEN")
        .ok()
        .or_else(|| hf_hub::Cache::from_env().token());
    named
        .map(|token| token.trim().to_string())
        .filter(|token| !token.is_empty())
}

/// Says whether no server is to be asked.
pub fn is_offline() -> bool {
    let set = std::env::var("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
    matches!(set.as_str(), "1" | "true" | "yes" | "on")
}
