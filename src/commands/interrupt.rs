//! Ctrl-C and SIGTERM: the first request ends a run at the next safe point, the second at once. SIGUSR1 is a request,
//! too: mpirun forwards it to all ranks, where it would end them on the other signals, and Slurm sends it before a
//! job's time limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use super::Exit;

/// Flag that is set when an interrupt is requested.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Starts to set the flag on signals instead of ending the process.
    pub fn catch() -> anyhow::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second signal finds the flag set and ends the process at once. Unfinished files are
            // next to their destination, and the next run removes them.
            flag::register_conditional_shutdown(signal, Exit::Interrupted as i32, asked.clone())
                .context("listening for signals")?;
            flag::register(signal, asked.clone()).context("listening for signals")?;
        }
        flag::register(SIGUSR1, asked.clone()).context("listening for signals")?;
        Ok(Self(asked))
    }

    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns the flag, for code that only polls it.
    pub fn flag(&self) -> &AtomicBool {
        &self.0
    }
}
