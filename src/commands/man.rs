//! `vtrain man`: the manual, one page per verb.

use std::path::PathBuf;

use super::{Exit, Failure, OrExit};
use anyhow::Context;

/// Print the manual page, or write one page for each command into a folder
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder to write vtrain.1, vtrain-train.1 and so on into
    folder: Option<PathBuf>,
}

/// Writes the manual of `command`, the whole program's.
pub fn run(args: Args, command: clap::Command) -> Result<(), Failure> {
    match args.folder {
        Some(folder) => std::fs::create_dir_all(&folder)
            .and_then(|()| clap_mangen::generate_to(command, &folder))
            .with_context(|| format!("writing manual pages into {}", folder.display()))
            .or_exit(Exit::Training),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command)
                .render(&mut page)
                .or_exit(Exit::Training)?;
            super::print(&String::from_utf8_lossy(&page))
        }
    }
}
