//! `vtrain check-dataset`: lists every clip of a run or a folder, accepted or refused, with the reason.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::anyhow;
use serde::Serialize;

use super::{Exit, Failure, OrExit, progress};
use crate::config::RunConfig;
use crate::data::{self, Bucket, Facts, Found, Report, Sample, Totals};
use crate::models::Dtype;

/// List what a run would train on: every clip, accepted or refused, and why
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder of clips: only checks that they can be read, without buckets
    #[arg(value_name = "DIR", required_unless_present = "config", conflicts_with_all = ["config", "set"])]
    folder: Option<PathBuf>,
    /// A run file (YAML): its data sets, with the bucket that each clip goes to
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Override a key of the run file (repeatable; values are YAML)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Decode every frame of every clip: slower, but finds damage inside
    #[arg(long)]
    decode: bool,
}

/// Runs `vtrain check-dataset`: prints the survey of a data set.
///
/// # Errors
/// Fails for settings that make no sense, and for unusable clips, each with its exit code.
pub fn run(args: Args) -> Result<(), Failure> {
    match (&args.config, &args.folder) {
        (Some(path), _) => {
            let config = RunConfig::load(path, &args.set).or_exit(Exit::Usage)?;
            let report = survey(&config.datasets, args.decode);
            let cache = Cache::of(&config, &report);
            if args.json {
                print_json(&report, report.totals(), cache)?;
            } else {
                super::print(&table(&report.samples))?;
                tell(&report);
                log::info!("{}", sums(&report.totals()));
                if let Some(cache) = cache {
                    log::info!("{cache}");
                }
            }
            judge(&report)
        }
        (None, Some(folder)) => {
            let bar = progress::bar("clips", 0);
            let report = data::survey_folder(folder, args.decode, &progress::on(&bar));
            bar.finish_and_clear();
            if args.json {
                print_json(&report, report.totals(), None)?;
            } else {
                super::print(&table(&report.samples))?;
                tell(&report);
                log::info!("{}", sums(&report.totals()));
            }
            judge(&report)
        }
        (None, None) => Err(anyhow!("give a folder or --config")).or_exit(Exit::Usage),
    }
}

/// Surveys the data sets of a run, with progress.
pub fn survey(datasets: &[data::Config], decode: bool) -> Report {
    let bar = progress::bar("clips", 0);
    let report = data::survey(datasets, decode, &progress::on(&bar));
    bar.finish_and_clear();
    report
}

/// Logs rejections and notes, one line each.
pub fn tell<T>(report: &Report<T>) {
    for note in &report.notes {
        log::info!("note: {note}");
    }
    for refusal in &report.refused {
        match refusal.stops {
            true => log::error!("{refusal}"),
            false => log::warn!("skipped: {refusal}"),
        }
    }
}

/// Fails if a run must not start with these rejections.
pub fn judge<T>(report: &Report<T>) -> Result<(), Failure> {
    let stopping = report.refused.iter().filter(|refusal| refusal.stops).count();
    if stopping == 0 {
        return Ok(());
    }
    let things = if stopping == 1 { "one thing" } else { "things" };
    let count = if stopping == 1 {
        String::new()
    } else {
        format!("{stopping} ")
    };
    Err(anyhow!(
        "{count}{things} refused, see above; fix them, or set on_invalid_clip: skip to train without bad clips"
    ))
    .or_exit(Exit::Data)
}

/// Columns of a clip's row in the table.
trait Row {
    fn found(&self) -> &Found;
    fn place(&self) -> Option<(Bucket, &str)>;
}

impl Row for Sample {
    fn found(&self) -> &Found {
        &self.found
    }

    fn place(&self) -> Option<(Bucket, &str)> {
        Some((self.bucket, &self.fit))
    }
}

impl Row for Found {
    fn found(&self) -> &Found {
        self
    }

    fn place(&self) -> Option<(Bucket, &str)> {
        None
    }
}

/// Formats one line per clip, columns aligned; empty without clips.
fn table(rows: &[impl Row]) -> String {
    let mut lines = vec![["CLIP", "SIZE", "FRAMES", "FPS", "SECONDS", "CODEC", "BUCKET", "FIT"].map(String::from)];
    for row in rows {
        let Facts {
            width,
            height,
            num_frames,
            fps,
            duration,
            codec,
        } = &row.found().facts;
        let (bucket, fit) = row
            .place()
            .map_or_else(Default::default, |(b, fit)| (b.to_string(), fit.to_string()));
        lines.push([
            row.found().entry.name.clone(),
            format!("{width}x{height}"),
            num_frames.to_string(),
            format!("{fps:.2}"),
            format!("{duration:.2}"),
            codec.clone(),
            bucket,
            fit,
        ]);
    }
    // A folder alone has no buckets.
    let columns = if rows.iter().any(|row| row.place().is_some()) {
        8
    } else {
        6
    };
    let widths: Vec<usize> = (0..columns)
        .map(|c| lines.iter().map(|line| line[c].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in lines.iter().filter(|_| !rows.is_empty()) {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn sums(totals: &Totals) -> String {
    let mut text = format!(
        "{} clips accepted, {} refused; {} frames, {:.1} seconds",
        totals.accepted, totals.refused, totals.frames, totals.seconds
    );
    for (bucket, count) in &totals.buckets {
        let _ = write!(text, "\n  {bucket}: {count}");
    }
    text
}

/// Size of the cache after precomputing.
#[derive(Debug, Serialize)]
struct Cache {
    latent_bytes: u64,
    caption_bytes: u64,
    total_bytes: u64,
}

impl Cache {
    /// Returns None if the model's family is not known yet.
    fn of(config: &RunConfig, report: &Report) -> Option<Self> {
        let footprint = config.model.footprint()?;
        let mut captions: Vec<&str> = report.samples.iter().map(|s| s.found.entry.caption.as_str()).collect();
        captions.sort_unstable();
        captions.dedup(); // each distinct caption is encoded once
        let width = match config.model.dtype {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        };
        let buckets = report.samples.iter().map(|sample| sample.bucket);
        let latent_bytes = buckets
            .map(|b| footprint.latent_bytes(b.frames, b.height, b.width))
            .fold(0, u64::saturating_add);
        let caption_bytes = footprint.caption_bytes(width).saturating_mul(captions.len() as u64);
        Some(Self {
            latent_bytes,
            caption_bytes,
            total_bytes: latent_bytes.saturating_add(caption_bytes),
        })
    }
}

impl std::fmt::Display for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = |bytes| indicatif::BinaryBytes(bytes).to_string();
        let (latents, captions) = (size(self.latent_bytes), size(self.caption_bytes));
        write!(
            f,
            "The cache will take {}: {latents} of latents, {captions} of captions",
            size(self.total_bytes)
        )
    }
}

fn print_json<T: Serialize>(report: &Report<T>, totals: Totals, cache: Option<Cache>) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Whole<'a, T> {
        #[serde(flatten)]
        report: &'a Report<T>,
        totals: Totals,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache: Option<Cache>,
    }
    let mut text = serde_json::to_string_pretty(&Whole { report, totals, cache }).or_exit(Exit::Training)?;
    text.push('\n');
    super::print(&text)
}
