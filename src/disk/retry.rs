//! Retries of transient write errors.

use std::time::Duration;

use super::WriteError;

/// Delays before the second and the third attempt.
const WAITS: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];

/// Retries up to twice if the error may be transient: a network file system returns EIO when a packet is lost. Each
/// attempt must start over: after a failed sync the contents on disk are unknown.
pub fn with_retries<T>(mut act: impl FnMut() -> Result<T, WriteError>) -> Result<T, WriteError> {
    for wait in WAITS {
        match act() {
            Err(error) if error.may_pass() => {
                log::debug!("{error} (retrying)");
                std::thread::sleep(wait);
            }
            done => return done,
        }
    }
    act()
}
