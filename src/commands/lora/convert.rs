//! `vtrain lora convert`: converts an adapter file to the format of another program.

use std::path::PathBuf;

use crate::commands::{Exit, Failure, OrExit};
use crate::disk;
use crate::lora::file;
use crate::lora::format::Format;
use crate::models::registry;

/// Write an adapter file in another format, without changing its numbers
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vtrain lora convert --to comfyui pytorch_lora_weights.safetensors style.safetensors")]
pub struct Args {
    /// The adapter file, of any format
    input: PathBuf,
    #[arg(long, value_enum)]
    to: Format,
    /// Destination of the new file
    output: PathBuf,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let read = file::read(&args.input, &registry::names()).or_exit(Exit::Model)?;
    let named = |error: anyhow::Error| error.context(args.input.display().to_string());
    let bytes = read.write(args.to).map_err(named).or_exit(Exit::Model)?;
    disk::write_whole(&args.output, &bytes).or_exit(Exit::Training)?;
    log::info!("{} adapters in {}", read.layers.len(), args.output.display());
    Ok(())
}
