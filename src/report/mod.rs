//! A run as one page, `output_dir/index.html`: curves, validation videos, the clips, the settings, the machine. It opens
//! from the disk, without a server or a network: script and styles stand in the page, pictures and videos are files
//! beside it.
//!
//! [`Run::read`] takes all from the run's folder: `config.yaml`, `metrics.jsonl`, `validation/`, and `report/about.json`,
//! which training writes at its start ([`about`]). So the page can be made again at any time, and for several runs at
//! once.

pub mod about;
mod curves;
mod environment;
mod films;
mod page;
mod run;
mod settings;
pub mod thumbnails;

pub use curves::Curves;
pub use environment::Environment;
pub use page::{html, write};
pub use run::Run;

/// The page's name in a run's folder.
pub const PAGE: &str = "index.html";

/// What the page needs besides the run's own files, in a run's folder.
pub const FOLDER: &str = "report";
