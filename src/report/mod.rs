//! Report of a run as one page, `output_dir/index.html`: curves, validation videos, the clips, the settings, the
//! machine. It opens from the disk, without a server or a network: script and styles are embedded, pictures and videos
//! are files next to it.
//!
//! [`Run::read`] reads everything from the run's folder: `config.yaml`, `metrics.jsonl`, `validation/`, and
//! `report/about.json`, which training writes at its start ([`about`]). So the page can be rebuilt at any time, and for
//! several runs at once.

pub mod about;
mod curves;
mod environment;
pub mod live;
mod page;
mod run;
mod settings;
pub mod thumbnails;
mod videos;

pub use curves::Curves;
pub use environment::Environment;
pub use page::{html, write};
pub use run::Run;
