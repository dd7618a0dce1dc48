//! Messages for people, on standard error, that do not tear a progress bar.
//!
//! Of several ranks each line names its own, and those behind rank 0 say only what is wrong. `vtrain launch` puts the names
//! there itself, and keeps what it does not show for a rank's last words: its ranks say all, without.

use std::io::{IsTerminal, Write};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::commands::{Failure, progress};
use crate::dist::{Place, ToldByFirst};
use crate::launch;

struct Stderr {
    colour: bool,
    /// Such as `[rank 1] `.
    rank: String,
}

/// Starts logging; each `-v` shows one level more, each `-q` one less.
pub fn init(verbose: u8, quiet: u8) {
    let (mut rank, mut less) = (String::new(), 0);
    if let Ok(place) = Place::here()
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
    // A second start, as in tests that call `run` twice, keeps the first logger.
    if log::set_boxed_logger(Box::new(Stderr { colour, rank })).is_ok() {
        log::set_max_level(level);
    }
}

/// Tells why the program ends.
pub fn error(failure: &Failure) {
    if failure.error.is::<ToldByFirst>() {
        return;
    }
    log::error!("{:#}", failure.error);
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // Other crates speak only when something is wrong.
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
        // In one piece: lines of several processes do not mix, and mpirun puts a rank's name before each piece.
        let line = format!("{}{on}{word}{off}{}\n", self.rank, record.args());
        progress::above(|| {
            // A closed standard error leaves nobody to tell.
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        });
    }

    fn flush(&self) {}
}
