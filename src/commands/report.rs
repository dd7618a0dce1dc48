//! `vtrain report`: rebuilds the page of a run, or makes one page that compares several.

use std::path::PathBuf;

use super::{Exit, Failure, OrExit};
use crate::report::{self, Run};
use crate::run_dir::RunDir;

/// Rebuild the page of a run, or compare runs on one page
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The output folders of runs
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Write the page here [default: index.html in the run's folder; for several runs, report.html here]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Writes the page, and prints its path.
pub fn run(args: Args) -> Result<(), Failure> {
    let runs = args.runs.iter().map(|folder| Run::read(folder));
    let runs = runs.collect::<anyhow::Result<Vec<_>>>().or_exit(Exit::Usage)?;
    let file = args.output.unwrap_or_else(|| match args.runs.as_slice() {
        [folder] => RunDir::new(folder).page(),
        _ => "report.html".into(),
    });
    report::write(&runs, &file).or_exit(Exit::Training)?;
    super::print(&format!("{}\n", file.display()))
}
