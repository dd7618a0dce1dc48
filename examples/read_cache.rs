//! Lists what a cache of encoded clips and captions holds: of each record the source, and its tensors' shapes.
//!
//! ```text
//! cargo run --example read_cache -- runs/tiny/precomputed
//! ```
//!
//! A cache is the folder that `precompute.dir` names, or `precomputed` in the output directory. Its records are safetensors
//! files in `clips/` and `captions/`, whose headers hold notes for people.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Parser;
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;

/// List what is in a cache
#[derive(Debug, Parser)]
pub struct Args {
    /// The folder of the cache
    cache: PathBuf,
}

fn main() -> anyhow::Result<()> {
    run(Args::parse(), &mut std::io::stdout())
}

/// Prints a line for each record and one for each of its tensors.
///
/// # Errors
/// A folder that is no cache, or a record that cannot be read.
pub fn run(args: Args, out: &mut impl Write) -> anyhow::Result<()> {
    for kind in ["clips", "captions"] {
        let folder = args.cache.join(kind);
        let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        let mut paths = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<Vec<PathBuf>>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        paths.sort();
        writeln!(out, "{kind}: {} records", paths.len())?;
        for path in paths {
            let shown = || path.display().to_string();
            let (_, header) = SafeTensors::read_metadata(&fs::read(&path).with_context(shown)?).with_context(shown)?;
            print(&path, &header, out)?;
        }
    }
    Ok(())
}

/// Prints the name of a record, its notes, and its tensors.
fn print(path: &Path, header: &Metadata, out: &mut impl Write) -> anyhow::Result<()> {
    let key = path.file_stem().unwrap_or_default().to_string_lossy();
    writeln!(out, "  {key}")?;
    for (name, note) in header.metadata().iter().flatten() {
        if name != "digest" {
            writeln!(out, "    {name}: {note}")?;
        }
    }
    for (name, tensor) in header.tensors() {
        writeln!(out, "    {name} {:?} {:?}", tensor.dtype, tensor.shape)?;
    }
    Ok(())
}
