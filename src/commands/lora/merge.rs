//! `vtrain lora merge`: merges adapters into a checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::commands::adapter::Lora;
use crate::commands::{Exit, Failure, OrExit};
use crate::disk;
use crate::lora::adapters::AdapterFile;
use crate::lora::merge::Folder;
use crate::models::registry;
use crate::nn::WeightFolder;

/// Write a checkpoint with adapters merged in
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: vtrain lora merge --model CogVideoX-5b --lora style.safetensors=0.8 merged/")]
pub struct Args {
    /// A diffusers directory
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Which variant of the weights to read: fp16 for model.fp16.safetensors
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// An adapter file of any format, or a folder with one, and its scale (repeatable)
    #[arg(long, value_name = "FILE[=SCALE]", required = true)]
    lora: Vec<Lora>,
    /// Destination of the new checkpoint: a folder that does not exist or is empty
    output: PathBuf,
}

/// Part of a checkpoint that adapters apply to.
const TRANSFORMER: &str = "transformer";

pub fn run(args: Args) -> Result<(), Failure> {
    check_output(&args).or_exit(Exit::Usage)?;
    registry::of_checkpoint(&args.model).or_exit(Exit::Model)?;
    let folder = WeightFolder::new(&args.model, args.variant.as_deref()).part(TRANSFORMER);
    let transformer = Folder::open(folder).or_exit(Exit::Model)?;
    let files: Vec<AdapterFile> = args
        .lora
        .iter()
        .map(Lora::read)
        .collect::<anyhow::Result<_>>()
        .or_exit(Exit::Model)?;
    transformer.check(&files).or_exit(Exit::Model)?;
    let made = disk::write_folder_whole(&args.output, |folder| -> anyhow::Result<()> {
        copy(&args.model, folder, &transformer)?;
        transformer.merge(&files, &folder.join(TRANSFORMER))
    });
    made.or_exit(Exit::Training)?;
    log::info!("the merged checkpoint is {}", args.output.display());
    Ok(())
}

/// Checks that nothing would be overwritten, or written into the input.
fn check_output(args: &Args) -> anyhow::Result<()> {
    let shown = args.output.display();
    if let Ok(mut entries) = fs::read_dir(&args.output) {
        ensure!(
            entries.next().is_none(),
            "{shown}: is not empty; give a folder that does not exist yet"
        );
    } else {
        ensure!(!args.output.exists(), "{shown}: exists and is not a folder");
    }
    let model = fs::canonicalize(&args.model).with_context(|| args.model.display().to_string())?;
    let parent = std::path::absolute(&args.output)?;
    let inside = parent
        .ancestors()
        .filter_map(|folder| fs::canonicalize(folder).ok())
        .any(|folder| folder == model);
    ensure!(!inside, "{shown}: is inside of the checkpoint that it is made from");
    Ok(())
}

/// Copies everything but the merged shards. Links are followed, because the Hub's cache consists of them.
fn copy(from: &Path, to: &Path, except: &Folder) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    let stale = from.ends_with(TRANSFORMER); // weights in other formats lack the adapters
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().context("an entry has a name")?;
        let target = to.join(name);
        let text = name.to_string_lossy();
        if text.starts_with('.')
            || except.holds(&path)
            || (stale && (is_weights(&text) || except.is_other_index(&text)))
        {
            continue;
        }
        if path.is_dir() {
            copy(&path, &target, except)?;
        } else {
            fs::copy(&path, &target).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Checks the name; an index does not count.
fn is_weights(name: &str) -> bool {
    [".safetensors", ".bin", ".pt", ".gguf"]
        .iter()
        .any(|end| name.ends_with(end))
}
