//! Command line: parsing, logging, dispatch, exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

use crate::commands::{self, Failure};

mod logging;

/// Fine-tune open video diffusion transformers with LoRA, and sample from them.
#[derive(Debug, Parser)]
#[command(
    name = "vtrain",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = EXIT_CODES
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// `vtrain --config run.yaml` is short for `vtrain train --config run.yaml`.
    #[command(flatten)]
    train: Option<commands::train::Args>,
    #[command(flatten)]
    verbosity: Verbosity,
}

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    2  usage or configuration
    3  data set
    4  model files
    5  training or output failed, too little disk or memory, or another run is at work in output_dir
   70  a bug in vtrain
  130  interrupted

Results go to standard output; messages and progress to standard error.";

#[derive(Debug, Clone, Copy, Args)]
struct Verbosity {
    /// Say more (-v) or everything (-vv)
    #[arg(short, long, action = ArgAction::Count, global = true)]
    verbose: u8,
    /// Say only warnings (-q) or only errors (-qq)
    #[arg(short, long, action = ArgAction::Count, global = true, conflicts_with = "verbose")]
    quiet: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(commands::train::Args),
    CheckDataset(commands::check_dataset::Args),
    Precompute(commands::precompute::Args),
    Plan(commands::plan::Args),
    Bench(commands::bench::Args),
    Sample(Box<commands::sample::Args>),
    Launch(commands::launch::Args),
    Report(commands::report::Args),
    Lora(commands::lora::Args),
    Quantize(commands::quantize::Args),
    Migrate(commands::migrate::Args),
    #[cfg(feature = "gpu-check")]
    #[command(hide = true)]
    GpuCheck(commands::gpu_check::Args),
    Completions(commands::completions::Args),
    Man(commands::man::Args),
}

/// Runs the program on these arguments, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(verb_first(args)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are results; anything else is a usage error (2). A closed pipe is not an error.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    logging::init(cli.verbosity.verbose, cli.verbosity.quiet);
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            logging::error(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    match (cli.command, cli.train) {
        (Some(Command::Train(args)), _) | (None, Some(args)) => commands::train::run(args),
        (Some(Command::CheckDataset(args)), _) => commands::check_dataset::run(args),
        (Some(Command::Precompute(args)), _) => commands::precompute::run(args),
        (Some(Command::Plan(args)), _) => commands::plan::run(args),
        (Some(Command::Bench(args)), _) => commands::bench::run(args),
        (Some(Command::Sample(args)), _) => commands::sample::run(*args),
        (Some(Command::Launch(args)), _) => commands::launch::run(args),
        (Some(Command::Report(args)), _) => commands::report::run(args),
        (Some(Command::Lora(args)), _) => commands::lora::run(args),
        (Some(Command::Quantize(args)), _) => commands::quantize::run(args),
        (Some(Command::Migrate(args)), _) => commands::migrate::run(args),
        #[cfg(feature = "gpu-check")]
        (Some(Command::GpuCheck(args)), _) => commands::gpu_check::run(args),
        (Some(Command::Completions(args)), _) => commands::completions::run(args, Cli::command()),
        (Some(Command::Man(args)), _) => commands::man::run(args, Cli::command()),
        (None, None) => Err(Failure::usage(anyhow::anyhow!("no command given; see vtrain --help"))),
    }
}

/// Moves `-v` and `-q` from before a verb to after it: clap takes anything before a verb for the options of `train`.
fn verb_first(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let is_level = |arg: &OsString| match arg.to_str() {
        Some("--verbose" | "--quiet") => true,
        Some(arg) => arg.len() > 1 && arg.starts_with('-') && arg[1..].chars().all(|c| c == 'v' || c == 'q'),
        None => false,
    };
    let levels = args.iter().skip(1).take_while(|arg| is_level(arg)).count();
    if args
        .get(levels + 1)
        .is_some_and(|arg| !arg.to_string_lossy().starts_with('-'))
    {
        args[1..levels + 2].rotate_left(levels);
    }
    args
}
