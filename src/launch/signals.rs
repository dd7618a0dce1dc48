//! Ctrl-C and SIGTERM in a supervising process: counted, never fatal.

use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level;

/// Number of interrupts requested so far.
#[derive(Debug, Clone, Default)]
pub struct Asked(Arc<AtomicUsize>);

impl Asked {
    /// Starts to count signals instead of ending the process.
    pub fn catch() -> std::io::Result<Self> {
        let asked = Self::default();
        for signal in [SIGINT, SIGTERM] {
            let count = asked.0.clone();
            let note = move || {
                count.fetch_add(1, Ordering::Relaxed);
            };
            // SAFETY: adding to an atomic is allowed in a signal handler.
            unsafe { low_level::register(signal, note) }?;
        }
        Ok(asked)
    }

    /// Returns the number of interrupts requested so far.
    pub fn times(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sends a signal to a process that was not waited for yet.
pub fn send(child: &Child, signal: i32) {
    // SAFETY: without `wait`, the pid still is this child's. A child that has ended ignores it.
    unsafe {
        libc::kill(child.id() as i32, signal);
    }
}
