//! The verbs, one file each.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::process::memory::TooLittle;

mod adapter;
pub mod bench;
pub mod check;
pub mod check_dataset;
pub mod completions;
pub mod gpu_check;
mod interrupt;
pub mod launch;
pub mod lora;
pub mod man;
pub mod migrate;
pub mod precompute;
pub mod progress;
pub mod ranks;
pub mod report;
pub mod sample;
pub mod train;

/// What the program's exit code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The data set cannot be trained on.
    Data = 3,
    /// The model's files are missing or broken.
    Model = 4,
    /// Training, or writing what it made, failed; or there was too little room on the disk or in memory for it.
    Training = 5,
    /// Ctrl-C or SIGTERM; what was done is kept.
    Interrupted = 130,
}

/// A command's failure: what to say, and the exit code.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub error: anyhow::Error,
}

impl Failure {
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self {
            exit: Exit::Usage,
            error: error.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.error)
    }
}

/// `work().or_exit(Exit::Data)?`
pub trait OrExit<T> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| {
            let error = error.into();
            // A machine that is too small is no fault of the files that were being read.
            let exit = match error.chain().any(|cause| cause.is::<TooLittle>()) {
                true => Exit::Training,
                false => exit,
            };
            Failure { exit, error }
        })
    }
}

/// Writes a command's result to standard output. A closed pipe (`| head`) ends quietly.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.or_exit(Exit::Training),
    }
}
