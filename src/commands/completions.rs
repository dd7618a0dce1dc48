//! `vtrain completions`: a completion script for a shell.

use super::Failure;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vtrain completions bash > ~/.local/share/bash-completion/completions/vtrain")]
pub struct Args {
    shell: clap_complete::Shell,
}

/// Writes the completions of `command`, the whole program's.
pub fn run(args: Args, mut command: clap::Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "vtrain", &mut script);
    super::print(&String::from_utf8_lossy(&script))
}
