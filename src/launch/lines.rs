//! What ranks write, line by line: shown under their names, kept for their last words, and in files where asked.
//!
//! Rank 0 is shown in full. Of the others, which all say nearly the same, only warnings and errors are; all they say is in
//! the files of `--log-dir`, and what they said last is told when they die.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use anyhow::Context;

use super::{Death, prefix};

/// Last words are at most so many lines.
const LAST: usize = 20;

/// A line longer than this is not kept in full.
const LONGEST: usize = 4000;

/// Where a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    Out,
    Err,
}

/// A line, without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// None of one that no rank wrote.
    pub rank: Option<usize>,
    pub stream: Stream,
    pub text: String,
}

/// All lines of an attempt.
pub struct Lines {
    /// Whether lines of all ranks are shown.
    all: bool,
    /// With one rank there is nothing to tell apart.
    alone: bool,
    folder: Option<PathBuf>,
    files: BTreeMap<(usize, Stream), File>,
    last: BTreeMap<Option<usize>, VecDeque<String>>,
    /// Rank 0's results go here.
    silent: bool,
}

impl Lines {
    /// Of `world_size` ranks; `folder` gets a folder for each, with `stdout.log` and `stderr.log`.
    pub fn new(world_size: usize, all: bool, folder: Option<&Path>) -> Self {
        Self {
            all,
            alone: world_size == 1,
            folder: folder.map(Path::to_path_buf),
            files: BTreeMap::new(),
            last: BTreeMap::new(),
            silent: false,
        }
    }

    /// Takes a line in.
    ///
    /// # Errors
    /// A log file that cannot be written.
    pub fn take(&mut self, line: &Line) -> anyhow::Result<()> {
        self.keep(line)?;
        if self.silent || !self.is_shown(line) {
            return Ok(());
        }
        // Nobody may be there to read.
        let _ = match (line.stream, line.rank) {
            (Stream::Out, Some(0)) => writeln!(std::io::stdout().lock(), "{}", line.text),
            (_, Some(rank)) if !self.alone => writeln!(std::io::stderr().lock(), "{}{}", prefix(rank), line.text),
            _ => writeln!(std::io::stderr().lock(), "{}", line.text),
        };
        Ok(())
    }

    /// From now on lines are kept, and no longer shown: what ranks say while they are ended is of no interest.
    pub fn silence(&mut self) {
        self.silent = true;
    }

    /// Tells how a rank ended, and what it said last.
    pub fn tell(&self, death: &Death) {
        let last = death.rank.and_then(|rank| self.last.get(&Some(rank)));
        let empty = VecDeque::new();
        let last = last.unwrap_or(&empty);
        log::error!(
            "{death}; {}",
            match last.is_empty() {
                true => "it had said nothing",
                false => "its last words:",
            }
        );
        for line in last {
            let name = death.rank.map(prefix).unwrap_or_default();
            let _ = writeln!(std::io::stderr().lock(), "  {name}{line}");
        }
    }

    /// What no rank wrote: messages of who started them.
    pub fn of_starter(&self) -> impl Iterator<Item = &str> {
        self.last.get(&None).into_iter().flatten().map(String::as_str)
    }

    fn is_shown(&self, line: &Line) -> bool {
        match line.rank {
            Some(0) => true,
            Some(_) => self.all || line.text.starts_with("warning: ") || line.text.starts_with("error: "),
            None => self.all,
        }
    }

    fn keep(&mut self, line: &Line) -> anyhow::Result<()> {
        let last = self.last.entry(line.rank).or_default();
        last.push_back(line.text.chars().take(LONGEST).collect());
        // Those who start ranks say much at the end, and how the first one died stands at its head.
        if last.len() > if line.rank.is_some() { LAST } else { 10 * LAST } {
            last.pop_front();
        }
        let (Some(folder), Some(rank)) = (&self.folder, line.rank) else {
            return Ok(());
        };
        let name = match line.stream {
            Stream::Out => "stdout.log",
            Stream::Err => "stderr.log",
        };
        let path = folder.join(rank.to_string()).join(name);
        let written = (|| {
            let file = match self.files.entry((rank, line.stream)) {
                std::collections::btree_map::Entry::Occupied(file) => file.into_mut(),
                std::collections::btree_map::Entry::Vacant(none) => {
                    fs::create_dir_all(folder.join(rank.to_string()))?;
                    none.insert(File::create(&path)?)
                }
            };
            writeln!(file, "{}", line.text)
        })();
        written.with_context(|| format!("{}: cannot be written", path.display()))
    }
}

/// Reads lines to their end on a thread of its own; `read` says whose each is.
pub fn follow(
    from: impl Read + Send + 'static,
    to: Sender<Line>,
    read: impl Fn(String) -> Line + Send + 'static,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        // A line may be any bytes.
        while from.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&bytes);
            let text = text.trim_end_matches(['\n', '\r']).to_string();
            if to.send(read(text)).is_err() {
                return;
            }
            bytes.clear();
        }
    })
}
