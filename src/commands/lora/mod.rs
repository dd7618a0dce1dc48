//! `vtrain lora`: operations on adapter files.

use super::Failure;

mod convert;
mod inspect;
mod merge;
mod resize;

/// Inspect, convert, shrink or merge adapter files
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Inspect(inspect::Args),
    Convert(convert::Args),
    Merge(merge::Args),
    Resize(resize::Args),
}

/// Runs `vtrain lora`: dispatches to inspect, convert, resize and merge.
///
/// # Errors
/// Those of the command, each with its exit code.
pub fn run(args: Args) -> Result<(), Failure> {
    match args.verb {
        Verb::Inspect(args) => inspect::run(args),
        Verb::Convert(args) => convert::run(args),
        Verb::Merge(args) => merge::run(args),
        Verb::Resize(args) => resize::run(args),
    }
}
