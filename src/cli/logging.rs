//! Logging to standard error, without breaking a progress bar.
//!
//! With several ranks each line has its rank as a prefix, and ranks other than 0 log only warnings and errors. `vtrain
//! launch` adds the prefixes itself, and buffers hidden lines for error reports: so its ranks log everything, without
//! prefixes.

use std::io::{IsTerminal, Write};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::commands::{Failure, progress};
use crate::distributed::{RankInfo, ReportedByRankZero};
use crate::launch;

struct Stderr {
    colour: bool,
    /// Prefix such as `[rank 1] `.
    rank: String,
}

/// Starts logging; each `-v` shows one level more, each `-q` one less.
pub fn init(verbose: u8, quiet: u8) {
    let (mut rank, mut less) = (String::new(), 0);
    if let Ok(place) = RankInfo::here()
        && place.world_size > 1
        && !launch::is_watched()
    {
        rank = launch::prefix(place.rank);
        less = i32::from(place.rank > 0);
    }
    let level = match verbose as i32 - quiet as i32 - less {
        ..=-2 => LevelFilter::Error,
        -1 => LevelFilter::Warn,
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // A second initialisation, as in tests that call `run` twice, keeps the first logger.
    if log::set_boxed_logger(Box::new(Stderr { colour, rank })).is_ok() {
        log::set_max_level(level);
    }
}

/// Logs the error that ends the program.
pub fn error(failure: &Failure) {
    if failure.error.is::<ReportedByRankZero>() {
        return;
    }
    log::error!("{:#}", failure.error);
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // Other crates log only warnings and errors.
        metadata.target().starts_with("vtrain") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (word, colour) = match record.level() {
            Level::Error => ("error: ", "\x1b[1;31m"),
            Level::Warn => ("warning: ", "\x1b[33m"),
            Level::Info => ("", ""),
            Level::Debug => ("debug: ", "\x1b[2m"),
            Level::Trace => ("trace: ", "\x1b[2m"),
        };
        let (on, off) = if self.colour && !colour.is_empty() {
            (colour, "\x1b[0m")
        } else {
            ("", "")
        };
        // Writes a line at once, so that lines of several processes do not mix; mpirun adds a rank's name to each
        // write.
        let line = format!("{}{on}{word}{off}{}\n", self.rank, record.args());
        progress::above(|| {
            // Standard error may be closed.
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        });
    }

    fn flush(&self) {}
}
