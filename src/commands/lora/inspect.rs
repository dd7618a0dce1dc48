//! `vtrain lora inspect`: describes an adapter file.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::commands::{self, Exit, Failure, OrExit};
use crate::lora::file::{self, ParsedAdapter};
use crate::lora::inspect::{Layer, Report};
use crate::lora::merge::anew;
use crate::models::registry;
use crate::nn::tensor_folder::TensorFolder;

/// Limits for the characters of a value, and for the tensors that are listed.
const LONGEST_VALUE: usize = 200;
const LISTED: usize = 20;

/// Show an adapter file's family, format, ranks, norms, metadata, and what would not apply
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The adapter file, of any format, or a folder with one
    file: PathBuf,
    /// Also show what would not fit this diffusers checkpoint
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print JSON, layer by layer
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<(), Failure> {
    let read = file::read(&args.file, &registry::names()).or_exit(Exit::Model)?;
    let transformer = args.model.as_deref().map(open).transpose().or_exit(Exit::Model)?;
    let report = Report::of(&read, |name, change| anew::misfit(transformer.as_ref()?, name, change));
    let report = report.or_exit(Exit::Model)?;
    if args.json {
        let json = serde_json::to_string_pretty(&report).or_exit(Exit::Model)?;
        return commands::print(&format!("{json}\n"));
    }
    commands::print(&text(&read, &report, args.model.is_some()))
}

fn open(model: &Path) -> anyhow::Result<TensorFolder> {
    registry::of_checkpoint(model)?;
    TensorFolder::open(&model.join("transformer").as_path().into())
}

fn text(read: &ParsedAdapter, report: &Report, asked: bool) -> String {
    let titles: Vec<&str> = read.families.iter().map(|names| names.title).collect();
    let family = match titles.as_slice() {
        [] => "none that vtrain knows".to_string(),
        titles => titles.join(" or "),
    };
    let mut text = format!("family    {family}\nformat    {:?}\n", report.format);
    if let Some(trigger) = &report.trigger {
        text += &format!("trigger   {}\n", trigger.escape_debug());
    }
    text += &format!("adapters  {}\n", report.layers.len());
    for (kind, layers) in report.kinds() {
        let numbers = |number: fn(&Layer) -> f64| range(layers.iter().map(|layer| number(layer)));
        let _ = writeln!(
            text,
            "  {kind} ({}): rank {}, alpha {}, scale {}, norm {}, {}",
            layers.len(),
            numbers(|layer| layer.rank as f64),
            numbers(|layer| layer.alpha),
            numbers(|layer| layer.scale),
            numbers(|layer| layer.norm.unwrap_or(f64::NAN)),
            layers[0].dtype
        );
    }
    if report.alpha_is_a_guess {
        text += "alpha     a guess: it is written nowhere, and taken to be the rank\n";
    }
    if !report.deltas.is_empty() {
        text += &format!("whole parameters that are added to  {}\n", report.deltas.len());
    }
    for (kind, deltas) in report.delta_kinds() {
        let norms = range(deltas.iter().map(|delta| delta.norm));
        let _ = writeln!(text, "  {kind} ({}): norm {norms}, {}", deltas.len(), deltas[0].dtype);
    }
    for (key, value) in &report.metadata {
        let short: String = value.chars().take(LONGEST_VALUE).collect();
        let more = if short.len() < value.len() { "..." } else { "" };
        let _ = writeln!(text, "{}: {}{more}", key.escape_debug(), short.escape_debug());
    }
    match report.not_applied.len() {
        0 if asked => text += "all of it fits the model\n",
        0 => {}
        count => text += &format!("not applied: {count}\n"),
    }
    for strange in report.not_applied.iter().take(LISTED) {
        let _ = writeln!(text, "  {} {}", strange.name.escape_debug(), strange.why);
    }
    if report.not_applied.len() > LISTED {
        text += "  ... and more; --json has all\n";
    }
    text
}

/// Formats a range as `4`, or `0.12 to 3.4`.
fn range(numbers: impl Iterator<Item = f64> + Clone) -> String {
    let (low, high) = (
        numbers.clone().fold(f64::NAN, f64::min),
        numbers.fold(f64::NAN, f64::max),
    );
    let short = |number: f64| match number.fract() == 0.0 {
        true => format!("{number}"),
        false => format!("{number:.4}"),
    };
    match low == high {
        true => short(low),
        false => format!("{} to {}", short(low), short(high)),
    }
}
