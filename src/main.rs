//! The `vtrain` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    vtrain::process::set_up();
    vtrain::process::panics::guarded(|| vtrain::cli::run(std::env::args_os()))
}
