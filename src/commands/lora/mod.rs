//! `vtrain lora`: what is done with adapter files besides sampling under them.

use super::Failure;

mod convert;
mod inspect;
mod merge;
mod resize;

/// Look into adapter files, convert, shrink or merge them
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

pub fn run(args: Args) -> Result<(), Failure> {
    match args.verb {
        Verb::Inspect(args) => inspect::run(args),
        Verb::Convert(args) => convert::run(args),
        Verb::Merge(args) => merge::run(args),
        Verb::Resize(args) => resize::run(args),
    }
}
