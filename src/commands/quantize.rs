//! `vtrain quantize`: writes a transformer in few bits.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use candle_core::DType;
use indicatif::BinaryBytes;

use super::checkpoint_copy::{self, Transfer, is_index, is_weights};
use super::precision::Precision;
use super::progress::Count;
use super::{Exit, Failure, OrExit};
use crate::diffusers_config as config;
use crate::disk::{self, space};
use crate::lora::target;
use crate::models::family::FamilySpec;
use crate::models::few_bits::StoredPart;
use crate::models::{gguf, registry};
use crate::nn::WeightFolder;
use crate::nn::rewrite::{Outcome, Rewrite, Summary, gguf as gguf_file, unchanged};
use crate::nn::storage::ggml::GgmlType;
use crate::nn::storage::layout::{BITSANDBYTES_INT8, FileForm};
use crate::nn::storage::quantize::Quantization;
use crate::nn::tensor_folder::TensorFolder;

/// Extension of GGUF files.
const GGUF: &str = "gguf";

/// Room for a header and configs, which are small.
const HEADERS: u64 = 16 << 20;

/// Write a transformer in few bits, for diffusers (bitsandbytes, torchao) or as a GGUF file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples: vtrain quantize --to nf4 Wan2.1-T2V-14B-Diffusers Wan2.1-T2V-14B-nf4
          vtrain quantize --to q8_0 Wan2.1-T2V-14B-Diffusers wan2.1-t2v-14b-Q8_0.gguf")]
pub struct Args {
    /// Form of the linear layers: nf4, fp4, bnb-int8 (bitsandbytes), int8, fp8-scaled (torchao), fp8, or a type of GGUF:
    /// q8_0, q4_k, ...
    #[arg(long, value_name = "FORM", value_parser = form)]
    to: Form,
    /// Leave the scales of nf4 and fp4 in f32: 4.5 bits a weight instead of 4.13
    #[arg(long)]
    no_double_quant: bool,
    /// Also store the text encoder, in a form of safetensors
    #[arg(long, value_name = "FORM", value_parser = form)]
    text_encoder: Option<Form>,
    /// Round weights to this type first; otherwise they keep theirs
    #[arg(long, value_enum)]
    dtype: Option<Precision>,
    /// Which variant of the weights to read: fp16 for model.fp16.safetensors
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// A diffusers directory, or its transformer folder alone
    input: PathBuf,
    /// Destination: a folder that does not exist or is empty, or a new file ending in .gguf
    output: PathBuf,
}

/// A form by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// In safetensors.
    Safetensors(FileForm),
    /// In a GGUF file.
    Gguf(GgmlType),
}

/// Parses a form's name.
///
/// # Errors
/// Names the forms that there are.
pub fn form(name: &str) -> Result<Form, String> {
    match Quantization::from_name(name) {
        Some(Quantization::Ggml(kind)) => Ok(Form::Gguf(kind)),
        Some(form) => Ok(Form::Safetensors(FileForm::of(form, true).unwrap_or(FileForm::Fp8))),
        None if name == BITSANDBYTES_INT8 => Ok(Form::Safetensors(FileForm::BitsandbytesInt8)),
        None => {
            let known: Vec<&str> = Quantization::all().map(Quantization::name).collect();
            let known = known.join(", ");
            Err(format!("there are {known}, and {BITSANDBYTES_INT8}"))
        }
    }
}

/// A part that is to be stored.
struct Job {
    part: StoredPart,
    folder: WeightFolder,
    form: FileForm,
}

/// Runs `vtrain quantize`: reads a transformer tensor by tensor, and writes it in few bits.
///
/// # Errors
/// Fails for a form or destination that does not fit, for a checkpoint that cannot be read or is in few bits already, and
/// for too little space, each with its exit code.
pub fn run(args: Args) -> Result<(), Failure> {
    check(&args).or_exit(Exit::Usage)?;
    let whole = args.input.join("model_index.json").exists();
    let spec = match whole {
        true => registry::of_checkpoint(&args.input),
        false => registry::of_transformer(&args.input),
    };
    let spec = spec.or_exit(Exit::Model)?;
    let input = WeightFolder::new(&args.input, args.variant.as_deref());
    match args.to {
        Form::Gguf(kind) => {
            let folder = if whole { input.part("transformer") } else { input };
            to_gguf(&args, spec, &folder, kind)
        }
        Form::Safetensors(form) => {
            let jobs = jobs(&args, spec, &input, form, whole).or_exit(Exit::Usage)?;
            to_folder(&args, &jobs, whole)
        }
    }
}

/// Checks what is known without the checkpoint.
fn check(args: &Args) -> anyhow::Result<()> {
    let mut problems = Vec::new();
    let named_gguf = args.output.extension().is_some_and(|extension| extension == GGUF);
    let shown = args.output.display();
    match args.to {
        Form::Gguf(_) => {
            if !named_gguf {
                problems.push(format!("{shown}: a file of this form is named .gguf"));
            } else if args.output.exists() {
                problems.push(format!("{shown}: exists; give a file that does not exist yet"));
            }
            if args.text_encoder.is_some() {
                problems.push("--text-encoder: a GGUF file holds the transformer alone".into());
            }
        }
        Form::Safetensors(_) if named_gguf => {
            problems.push(format!("{shown}: this form is not one of GGUF files; give a folder"));
        }
        Form::Safetensors(_) => {
            let output = checkpoint_copy::check_output(&args.input, &args.output);
            problems.extend(output.err().map(|problem| format!("{problem:#}")));
        }
    }
    if let Some(Form::Gguf(_)) = args.text_encoder {
        problems.push("--text-encoder: text encoders are not written as GGUF; give nf4, fp4, int8 or the like".into());
    }
    let four_bit = |form: Option<Form>| matches!(form, Some(Form::Safetensors(FileForm::FourBit(..))));
    if args.no_double_quant && !four_bit(Some(args.to)) && !four_bit(args.text_encoder) {
        problems.push("--no-double-quant: is for nf4 and fp4".into());
    }
    ensure!(problems.is_empty(), problems.join("\n"));
    Ok(())
}

fn jobs(
    args: &Args,
    spec: &'static FamilySpec,
    input: &WeightFolder,
    form: FileForm,
    whole: bool,
) -> anyhow::Result<Vec<Job>> {
    let transformer = StoredPart::Transformer(spec);
    let with_option = |form| match form {
        FileForm::FourBit(code, _) => FileForm::FourBit(code, !args.no_double_quant),
        other => other,
    };
    let job = |part: StoredPart, form| Job {
        part,
        folder: if whole {
            input.part(part.folder())
        } else {
            input.clone()
        },
        form: with_option(form),
    };
    let mut jobs = vec![job(transformer, form)];
    if let Some(Form::Safetensors(form)) = args.text_encoder {
        let text_encoder = job(StoredPart::TextEncoder, form);
        ensure!(
            whole && text_encoder.folder.is_dir(),
            "--text-encoder: {} has no text_encoder/",
            args.input.display()
        );
        jobs.push(text_encoder);
    }
    Ok(jobs)
}

/// Opens a folder of dense weights.
fn open(folder: &WeightFolder, part: StoredPart) -> anyhow::Result<TensorFolder> {
    let opened = TensorFolder::open(folder)?;
    if let Some(stored) = opened.tensors().iter().find(|tensor| tensor.is_stored()) {
        bail!(
            "{}: is in few bits already, such as {}; storing it again would add to its errors: give the checkpoint that it \
             was made from",
            folder.display(),
            stored.name
        );
    }
    ensure!(
        opened.tensors().iter().any(|tensor| part.is_linear(tensor)),
        "{}: has none of the linear layers that are stored in few bits",
        folder.display()
    );
    Ok(opened)
}

fn to_folder(args: &Args, jobs: &[Job], whole: bool) -> Result<(), Failure> {
    let dtype = args.dtype.map(DType::from);
    let folders: Vec<TensorFolder> = jobs
        .iter()
        .map(|job| open(&job.folder, job.part))
        .collect::<anyhow::Result<_>>()
        .or_exit(Exit::Model)?;
    let mut plans = Vec::new();
    for (job, folder) in jobs.iter().zip(&folders) {
        let outcome = |tensor: &_| job.part.outcome(tensor, job.form, dtype);
        let rewrite = Rewrite::new(folder, outcome, &unchanged).or_exit(Exit::Model)?;
        let path = job.folder.join("config.json");
        let config = config::text(&path).and_then(|text| job.part.config(&text, Some(job.form), folder, dtype));
        let config = config
            .with_context(|| path.display().to_string())
            .or_exit(Exit::Model)?;
        plans.push((job, rewrite, config));
    }
    // Files that a part's new ones take the place of.
    let replaced = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let within = path.parent();
        let here = jobs.iter().any(|job| within == Some(&*job.folder));
        here && (is_weights(&name) || is_index(&name) || name == "config.json")
    };
    let mut sizes: Vec<u64> = plans.iter().map(|(_, rewrite, _)| rewrite.bytes() + HEADERS).collect();
    if !checkpoint_copy::on_one_disk(&args.input, &args.output) {
        sizes.extend(checkpoint_copy::sizes(&args.input, &replaced).or_exit(Exit::Model)?);
    }
    ensure_space(&args.output, &sizes).or_exit(Exit::Training)?;
    let mut summaries = Vec::new();
    let made = disk::write_folder_whole(&args.output, |made| -> anyhow::Result<()> {
        checkpoint_copy::copy(&args.input, made, Transfer::LinkWeights, &replaced)?;
        for (job, rewrite, config) in &plans {
            let to = if whole {
                made.join(job.part.folder())
            } else {
                made.into()
            };
            std::fs::write(to.join("config.json"), config)?;
            let mut count = Count::start("tensors", rewrite.tensors().count());
            let summary = rewrite.write(&to.join(job.part.file()), || count.step());
            count.clear();
            summaries.push(summary.with_context(|| job.folder.display().to_string())?);
        }
        Ok(())
    });
    made.or_exit(Exit::Training)?;
    let mut text = String::new();
    for ((job, rewrite, _), summary) in plans.iter().zip(&summaries) {
        let linear = rewrite.tensors().filter(|(tensor, _)| job.part.is_linear(tensor));
        let dense = linear.filter(|(_, outcome)| !matches!(outcome, Outcome::Stored(..)));
        text += &described(
            job.part.folder(),
            summary,
            dense.map(|(tensor, _)| tensor.name.as_str()),
        );
    }
    log::info!("written: {}", args.output.display());
    super::print(&text)
}

fn to_gguf(args: &Args, spec: &'static FamilySpec, folder: &WeightFolder, kind: GgmlType) -> Result<(), Failure> {
    let part = StoredPart::Transformer(spec);
    let opened = spec
        .gguf
        .with_context(|| {
            let title = spec.title;
            let families = registry::FAMILIES.iter().filter(|spec| spec.gguf.is_some());
            let known: Vec<&str> = families.map(|spec| spec.title).collect();
            format!(
                "no program reads GGUF files of {title}; there are such of {}",
                known.join(", ")
            )
        })
        .and_then(|gguf| Ok((gguf, open(folder, part)?)));
    let (gguf, opened) = opened.or_exit(Exit::Model)?;
    let dtype = args.dtype.map(DType::from);
    let outcomes = gguf::outcomes(spec, gguf, &opened, kind, dtype).or_exit(Exit::Model)?;
    let sizes = outcomes.iter().map(|outcome| outcome.tensor.bytes());
    let sizes: Vec<u64> = sizes.collect::<anyhow::Result<_>>().or_exit(Exit::Model)?;
    ensure_space(&args.output, &[sizes.iter().sum::<u64>() + HEADERS]).or_exit(Exit::Training)?;
    let mut count = Count::start("tensors", outcomes.len());
    let metadata = gguf::metadata(gguf, kind);
    let summary = gguf_file::write(&opened, &outcomes, &metadata, &args.output, || count.step());
    count.clear();
    let summary = summary
        .with_context(|| folder.display().to_string())
        .or_exit(Exit::Training)?;
    let fallen = gguf::in_more_bits(spec, gguf, &outcomes, kind);
    if fallen > 0 {
        log::info!(
            "{fallen} matrices have rows that are no whole blocks of {kind}, {} numbers each; they are in types of more bits",
            kind.block()
        );
    }
    let linear = outcomes.iter().filter(|outcome| part.is_linear(outcome.source));
    let dense = linear.filter(|outcome| outcome.tensor.kind.block() == 1);
    log::info!("written: {}", args.output.display());
    super::print(&described(
        part.folder(),
        &summary,
        dense.map(|outcome| outcome.source.name.as_str()),
    ))
}

/// The table of a part, and its linear layers that are dense.
fn described<'a>(part: &str, summary: &Summary, dense: impl Iterator<Item = &'a str>) -> String {
    let layers = dense.map(|name| name.trim_end_matches(".weight").to_string());
    let layers: Vec<String> = layers.collect();
    let dense = match layers.is_empty() {
        true => String::new(),
        false => format!("linear layers that stay dense: {}\n", target::kinds(&layers)),
    };
    format!("{part}\n{summary}{dense}")
}

fn ensure_space(output: &Path, sizes: &[u64]) -> Result<(), space::NotEnoughSpace> {
    let folder = output.parent().unwrap_or(output);
    let needed = space::taken(sizes.iter().copied());
    log::debug!("{} are needed at {}", BinaryBytes(needed), folder.display());
    space::ensure(folder, needed, || "the quantised model".to_string())
}

/// Returns the names of the forms of safetensors.
pub fn folder_forms() -> String {
    let names = Quantization::all().map(Quantization::name);
    let names = names.filter(|name| matches!(form(name), Ok(Form::Safetensors(_))));
    names.chain([BITSANDBYTES_INT8]).collect::<Vec<_>>().join(", ")
}
