//! `vtrain lora resize`: reduces the rank of an adapter file.

use std::path::PathBuf;

use crate::commands::{self, Exit, Failure, OrExit};
use crate::disk;
use crate::lora::file::{self, ParsedAdapter};
use crate::lora::resize::{Resized, resize};
use crate::models::registry;

/// Reduce adapters to a smaller rank, by their singular values
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The adapter file, of any format
    input: PathBuf,
    /// The new rank
    #[arg(long)]
    rank: usize,
    /// Destination of the new file, in the same format
    output: PathBuf,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let named = |error: anyhow::Error| error.context(args.input.display().to_string());
    let read = file::read(&args.input, &registry::names()).or_exit(Exit::Model)?;
    read.check().map_err(named).or_exit(Exit::Model)?;
    let Resized { layers, errors, error } = resize(&read.layers, args.rank).map_err(named).or_exit(Exit::Usage)?;
    let read = ParsedAdapter { layers, ..read };
    let bytes = read.write(read.format).map_err(named).or_exit(Exit::Model)?;
    disk::write_whole(&args.output, &bytes).or_exit(Exit::Training)?;
    let worst = errors.iter().max_by(|(_, a), (_, b)| a.total_cmp(b));
    let worst = worst.map_or(String::new(), |(layer, error)| {
        format!("; most in {layer}: {:.2} %", error * 100.0)
    });
    commands::print(&format!(
        "rank {}: {:.2} % of the adapters' norm is lost{worst}\n",
        args.rank,
        error * 100.0
    ))
}
