//! The `vtrain` program: everything is in the library.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: vtrain::process::allocator::ReportingAllocator = vtrain::process::allocator::ReportingAllocator;

fn main() -> ExitCode {
    vtrain::process::set_up();
    vtrain::process::panics::guarded(|| vtrain::cli::run(std::env::args_os()))
}
