//! `vtrain migrate`: converts another trainer's command to a run file.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use super::{Exit, Failure, OrExit};
use crate::disk;
use crate::migrate::{self, Migrated, Source};

/// Upper limit for a script.
const MOST_BYTES: u64 = 1 << 20;

/// Turn another trainer's command into a run file
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    trainer: Trainer,
}

#[derive(Debug, clap::Subcommand)]
enum Trainer {
    /// From a script or command line of finetrainers, or of diffusers' own CogVideoX scripts
    Finetrainers(Script),
    /// From a script or command line of musubi-tuner
    Musubi {
        #[command(flatten)]
        script: Script,
        /// The data set's file, which replaces the script's
        #[arg(long, value_name = "FILE")]
        dataset_config: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct Script {
    /// The shell script, batch file or PowerShell script, which is read and never run; - is standard input
    #[arg(value_name = "SCRIPT")]
    script: PathBuf,
    /// Write the run file here, its paths relative to its folder [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The folder that the script is run from [default: the current one]
    #[arg(long, value_name = "FOLDER")]
    from: Option<PathBuf>,
    /// The value of a variable that the script does not set
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    var: Vec<(String, String)>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if migrate::shell::syntax::is_name(name) => Ok((name.to_string(), value.to_string())),
        _ => Err("expected NAME=VALUE".into()),
    }
}

/// Reads a script, and writes the run file.
pub fn run(args: Args) -> Result<(), Failure> {
    let (script, migrated) = match args.trainer {
        Trainer::Finetrainers(script) => {
            let source = script.source()?;
            (script, migrate::finetrainers::migrate(&source))
        }
        Trainer::Musubi { script, dataset_config } => {
            let source = script.source()?;
            // Given on the command line, so relative to the current folder.
            let file = match dataset_config {
                Some(file) => Some(absolute(&file)?.to_string_lossy().into_owned()),
                None => None,
            };
            (script, migrate::musubi::migrate(&source, file.as_deref()))
        }
    };
    let migrated = migrated.map_err(|problems| Failure::usage(anyhow!(problems.join("\n"))))?;
    match &script.output {
        Some(path) => disk::write_whole(path, migrated.yaml.as_bytes()).or_exit(Exit::Training)?,
        None => super::print(&migrated.yaml)?,
    }
    tell(&migrated);
    Ok(())
}

fn tell(migrated: &Migrated) {
    for problem in &migrated.problems {
        log::warn!("the run file is incomplete: {problem}");
    }
    if migrated.remarks > 0 {
        log::info!(
            "{} settings of the script have no key of their own; see the comments at the end",
            migrated.remarks
        );
    }
}

impl Script {
    fn source(&self) -> Result<Source, Failure> {
        let here = absolute(Path::new("."))?;
        let from = self.from.as_deref().map_or(Ok(here.clone()), absolute)?;
        let standard_input = self.script.as_os_str() == "-";
        let to = match &self.output {
            Some(path) => absolute(path)?.parent().unwrap_or(Path::new("/")).to_path_buf(),
            None => here,
        };
        let folder = match standard_input {
            true => None,
            false => absolute(&self.script)?.parent().map(Path::to_path_buf),
        };
        let mut variables: Vec<(String, String)> = Vec::new();
        variables.extend(std::env::var("HOME").ok().map(|home| ("HOME".to_string(), home)));
        variables.extend(self.var.iter().cloned());
        Ok(Source {
            text: self.read().or_exit(Exit::Usage)?,
            name: match standard_input {
                true => "the command".into(),
                false => self.script.display().to_string(),
            },
            folder,
            from,
            to,
            variables,
        })
    }

    fn read(&self) -> anyhow::Result<String> {
        let mut bytes = Vec::new();
        let name = self.script.display();
        if self.script.as_os_str() == "-" {
            std::io::stdin().take(MOST_BYTES + 1).read_to_end(&mut bytes)
        } else {
            std::fs::File::open(&self.script).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes))
        }
        .with_context(|| format!("{name}: cannot be read"))?;
        anyhow::ensure!(
            bytes.len() as u64 <= MOST_BYTES,
            "{name}: is longer than {MOST_BYTES} bytes, the limit for a script"
        );
        migrate::text::decode(bytes).map_err(|why| anyhow!("{name}: {why}"))
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .with_context(|| path.display().to_string())
        .or_exit(Exit::Usage)
}
