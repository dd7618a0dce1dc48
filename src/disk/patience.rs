//! Trying again what may work a moment later.

use std::time::Duration;

use super::WriteError;

/// Before the second and the third try.
const WAITS: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];

/// Does it again, twice at most, where the error may pass: a network's file system says EIO when a packet is lost. What is
/// done must begin anew each time: after a sync that failed nobody knows what of a file is on the disk.
pub fn patiently<T>(mut act: impl FnMut() -> Result<T, WriteError>) -> Result<T, WriteError> {
    for wait in WAITS {
        match act() {
            Err(error) if error.may_pass() => {
                log::debug!("{error} (tried again)");
                std::thread::sleep(wait);
            }
            done => return done,
        }
    }
    act()
}
