//! The `vtrain` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    vtrain::cli::run(std::env::args_os())
}
