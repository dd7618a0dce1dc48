//! The Hugging Face Hub: fetches checkpoints and adapters, uploads finished adapters.
//!
//! `HF_HOME` sets the cache's location, `HF_TOKEN` (or the file that `hf auth login` writes) the user, `HF_ENDPOINT`
//! the server, and `HF_HUB_OFFLINE=1` forbids requests; all of them are in [`environment`].

pub mod environment;
pub mod fetch;
pub mod layout;
pub mod push;

/// Checks for the form `owner/name`.
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
