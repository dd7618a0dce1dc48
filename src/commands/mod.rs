//! Commands, one file per verb.

use std::fmt;

use crate::disk::space::NotEnoughSpace;
use crate::process::memory::TooLittle;

mod adapter;
pub mod bench;
pub mod check;
pub mod check_dataset;
mod checkpoint_copy;
pub mod completions;
#[cfg(feature = "gpu-check")]
pub mod gpu_check;
mod interrupt;
pub mod launch;
pub mod lora;
pub mod man;
pub mod migrate;
pub mod plan;
mod precision;
pub mod precompute;
pub mod progress;
pub mod quantize;
pub mod ranks;
pub mod report;
pub mod sample;
mod settled;
mod text_records;
pub mod train;

pub use crate::process::exit::Exit;

/// Failure of a command, with its exit code.
#[derive(Debug)]
pub struct Failure {
    /// Exit code of the process.
    pub exit: Exit,
    /// The error and its causes.
    pub error: anyhow::Error,
}

impl Failure {
    /// Failure of the command line or the run file (exit code 2).
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

/// Conversion of errors: `work().or_exit(Exit::Data)?`
pub trait OrExit<T> {
    /// Turns an error into a failure with this exit code.
    ///
    /// # Errors
    /// Returns the same error.
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| {
            let error = error.into();
            let exit = exit_of(&error).unwrap_or(exit);
            Failure { exit, error }
        })
    }
}

/// Exit code of an error that is no fault of what was being read: too little memory, or too little space.
fn exit_of(error: &anyhow::Error) -> Option<Exit> {
    let short = |cause: &(dyn std::error::Error + 'static)| cause.is::<TooLittle>() || cause.is::<NotEnoughSpace>();
    error.chain().any(short).then_some(Exit::Training)
}

/// Writes a command's result to standard output. A closed pipe (`| head`) ends quietly.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.or_exit(Exit::Training),
    }
}
