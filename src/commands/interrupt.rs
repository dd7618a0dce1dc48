//! Ctrl-C and SIGTERM: asked once, a run ends at the next good place; asked twice, at once. SIGUSR1 asks, too: mpirun passes
//! it on to all ranks, where it would end them upon the others, and Slurm sends it before a job's time is up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use super::Exit;

/// Whether somebody wants the run to end.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on signals are noted in place of ending the process.
    pub fn catch() -> anyhow::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second signal finds the flag set and ends the process there and then. What was being
            // written lies beside its destination, and the next run sweeps it away.
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

    /// For those below who only look at it.
    pub fn flag(&self) -> &AtomicBool {
        &self.0
    }

    /// An error once it is asked for, to end what can be done again.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.asked() {
            true => bail!("interrupted"),
            false => Ok(()),
        }
    }
}
