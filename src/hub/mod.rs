//! The Hugging Face Hub: checkpoints and adapters from there, finished adapters to there.
//!
//! `HF_HOME` says where the cache is, `HF_TOKEN` (or the file that `hf auth login` leaves) who asks, `HF_ENDPOINT` which
//! server answers, and `HF_HUB_OFFLINE=1` that none is asked; all of them are in [`environment`].

pub mod environment;
pub mod fetch;
pub mod layout;
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
