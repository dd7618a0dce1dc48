//! `vtrain lora merge`: merges adapters into a checkpoint.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use candle_core::DType;

use crate::commands::adapter;
use crate::commands::checkpoint_copy::{self, Transfer, is_index, is_weights};
use crate::commands::precision::Precision;
use crate::commands::progress::Count;
use crate::commands::quantize::{self, Form};
use crate::commands::{Exit, Failure, OrExit};
use crate::diffusers_config as config;
use crate::disk::{self, space};
use crate::lora::adapters::AdapterFile;
use crate::lora::merge::{Folder, anew};
use crate::lora::scaled_file::ScaledFile;
use crate::models::family::FamilySpec;
use crate::models::few_bits::{StoredPart, USUAL};
use crate::models::registry;
use crate::nn::WeightFolder;
use crate::nn::rewrite::{Outcome, Rewrite};
use crate::nn::storage::layout::FileForm;
use crate::nn::tensor_folder::{SourceTensor, TensorFolder};

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
    lora: Vec<ScaledFile>,
    /// Form of the merged transformer: none (dense), as-it-was, nf4, fp4, int8, fp8-scaled, fp8 or bnb-int8; by default
    /// dense
    #[arg(long, value_name = "FORM", value_parser = quantization)]
    quantization: Option<Quantized>,
    /// Type of matrices that were in few bits and become dense
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    dtype: Precision,
    /// Destination of the new checkpoint: a folder that does not exist or is empty
    output: PathBuf,
}

/// Part of a checkpoint that adapters apply to.
const TRANSFORMER: &str = "transformer";

/// Form of a merged transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantized {
    Dense,
    AsItWas,
    Form(FileForm),
}

/// Parses a form's name.
fn quantization(name: &str) -> Result<Quantized, String> {
    match name {
        "none" => Ok(Quantized::Dense),
        "as-it-was" => Ok(Quantized::AsItWas),
        name => match quantize::form(name) {
            Ok(Form::Safetensors(form)) => Ok(Quantized::Form(form)),
            Ok(Form::Gguf(_)) => {
                Err("is a form of GGUF files: merge into dense weights, then use vtrain quantize".into())
            }
            Err(_) => Err(format!("there are none, as-it-was, {}", quantize::folder_forms())),
        },
    }
}

pub fn run(args: Args) -> Result<(), Failure> {
    checkpoint_copy::check_output(&args.model, &args.output).or_exit(Exit::Usage)?;
    let spec = registry::of_checkpoint(&args.model).or_exit(Exit::Model)?;
    let folder = WeightFolder::new(&args.model, args.variant.as_deref()).part(TRANSFORMER);
    let transformer = Folder::open(folder.clone()).or_exit(Exit::Model)?; // says more of broken files
    let tensors = TensorFolder::open(&folder).or_exit(Exit::Model)?;
    let stored = tensors.tensors().iter().any(SourceTensor::is_stored);
    let files: Vec<AdapterFile> = args
        .lora
        .iter()
        .map(adapter::read)
        .collect::<anyhow::Result<_>>()
        .or_exit(Exit::Model)?;
    let form = match (args.quantization, stored) {
        (None | Some(Quantized::Dense), false) => {
            return by_shards(&args, &transformer, &files);
        }
        (Some(Quantized::AsItWas), false) => {
            let why = "--quantization as-it-was: no matrix of the transformer is in few bits";
            return Err(Failure::usage(anyhow::anyhow!(why)));
        }
        (None, true) => {
            let dtype = DType::from(args.dtype).as_str();
            log::info!(
                "the transformer is in few bits; the merged one will be dense, in {dtype} (--quantization, --dtype)"
            );
            Quantized::Dense
        }
        (Some(form), _) => form,
    };
    anew(&args, spec, &folder, &tensors, &files, form)
}

/// Merges into dense weights, which keep their files.
fn by_shards(args: &Args, transformer: &Folder, files: &[AdapterFile]) -> Result<(), Failure> {
    transformer.check(files).or_exit(Exit::Model)?;
    let skip = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Weights in other formats lack the adapters.
        let stale = path.parent().is_some_and(|folder| folder.ends_with(TRANSFORMER));
        transformer.holds(path) || (stale && (is_weights(&name) || transformer.is_other_index(&name)))
    };
    let made = disk::write_folder_whole(&args.output, |made| -> anyhow::Result<()> {
        checkpoint_copy::copy(&args.model, made, Transfer::Copy, &skip)?;
        transformer.merge(files, &made.join(TRANSFORMER))
    });
    made.or_exit(Exit::Training)?;
    log::info!("the merged checkpoint is {}", args.output.display());
    Ok(())
}

/// Merges into weights that are written anew, in one file.
fn anew(
    args: &Args,
    spec: &'static FamilySpec,
    folder: &WeightFolder,
    tensors: &TensorFolder,
    files: &[AdapterFile],
    form: Quantized,
) -> Result<(), Failure> {
    let misfits = anew::misfits(tensors, files);
    if !misfits.is_empty() {
        return Err(anyhow::anyhow!(misfits.join("\n"))).or_exit(Exit::Model);
    }
    let part = StoredPart::Transformer(spec);
    let outcomes = outcomes(part, tensors, files, form, args.dtype.into());
    let outcomes = outcomes.or_exit(Exit::Model)?;
    let outcome = |tensor: &SourceTensor| {
        let at = tensors.tensors().binary_search_by(|other| other.name.cmp(&tensor.name));
        at.map_or(Outcome::AsItIs, |at| outcomes[at])
    };
    let change = |folder: &TensorFolder, tensor: &SourceTensor| anew::merged(files, folder, tensor);
    let rewrite = Rewrite::new(tensors, outcome, &change).or_exit(Exit::Model)?;
    let config = config(part, folder, tensors, form).or_exit(Exit::Model)?;
    let replaced = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let here = path.parent().is_some_and(|parent| parent == &**folder);
        here && (is_weights(&name) || is_index(&name) || name == "config.json")
    };
    let parent = args.output.parent().unwrap_or(&args.output);
    let sizes = checkpoint_copy::sizes(&args.model, &replaced).or_exit(Exit::Model)?;
    let needed = space::taken(sizes.into_iter().chain([rewrite.bytes()]));
    space::ensure(parent, needed, || "the merged checkpoint".into()).or_exit(Exit::Training)?;
    let mut summary = None;
    let made = disk::write_folder_whole(&args.output, |made| -> anyhow::Result<()> {
        checkpoint_copy::copy(&args.model, made, Transfer::Copy, &replaced)?;
        let to = made.join(TRANSFORMER);
        fs::write(to.join("config.json"), &config)?;
        let mut count = Count::start("tensors", rewrite.tensors().count());
        let written = rewrite.write(&to.join(part.file()), || count.step());
        count.clear();
        summary = Some(written.with_context(|| folder.display().to_string())?);
        Ok(())
    });
    made.or_exit(Exit::Training)?;
    log::info!("the merged checkpoint is {}", args.output.display());
    crate::commands::print(&summary.map_or(String::new(), |summary| summary.to_string()))
}

/// Returns what becomes of each tensor, or all that cannot be.
fn outcomes(
    part: StoredPart,
    tensors: &TensorFolder,
    files: &[AdapterFile],
    form: Quantized,
    dtype: DType,
) -> anyhow::Result<Vec<Outcome>> {
    let (mut outcomes, mut problems) = (Vec::new(), Vec::new());
    for tensor in tensors.tensors() {
        if anew::touches(files, tensor) && !tensor.is_stored() && tensor.dtype().is_none() {
            problems.push(format!(
                "{} holds no numbers that an adapter could be added to",
                tensor.name
            ));
        }
        let outcome = match form {
            Quantized::Dense => Ok(anew::dense(files, tensor, dtype)),
            Quantized::AsItWas => anew::as_it_was(files, tensor, USUAL),
            Quantized::Form(form) => Ok(match part.outcome(tensor, form, None) {
                Outcome::AsItIs => anew::dense(files, tensor, dtype),
                stored => stored,
            }),
        };
        match outcome {
            Ok(outcome) => outcomes.push(outcome),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        bail!("{}; give --quantization none, or another form", problems.join("\n"));
    }
    Ok(outcomes)
}

/// Returns config.json of the merged transformer.
fn config(part: StoredPart, folder: &WeightFolder, tensors: &TensorFolder, form: Quantized) -> anyhow::Result<String> {
    let path = folder.join("config.json");
    let named = || path.display().to_string();
    let text = config::text(&path).with_context(named)?;
    let form = match form {
        Quantized::AsItWas => return Ok(text),
        Quantized::Dense => None,
        Quantized::Form(form) => Some(form),
    };
    part.config(&text, form, tensors, None).with_context(named)
}
