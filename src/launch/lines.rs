//! Output of ranks, line by line: shown with a prefix, buffered for error reports, and written to files on request.
//!
//! Rank 0 is shown in full. Of the others, whose output is nearly the same, only warnings and errors are shown. The
//! files of `--log-dir` have everything, and the last lines of a rank that fails are shown.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;

use anyhow::Context;

use super::{RankFailure, prefix};

/// Limit for the last lines of a rank.
const LAST: usize = 20;

/// Characters beyond which a line is truncated.
const LONGEST: usize = 4000;

/// Stream of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A line, without its terminator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Rank of the line; None if no rank wrote it.
    pub rank: Option<usize>,
    /// Stream that the line came from.
    pub stream: Stream,
    /// Text of the line.
    pub text: String,
}

/// All lines of an attempt.
pub struct Lines {
    /// True to show the lines of all ranks.
    all: bool,
    /// True for a single rank, whose lines need no prefix.
    alone: bool,
    folder: Option<PathBuf>,
    files: BTreeMap<(usize, Stream), File>,
    last: BTreeMap<Option<usize>, VecDeque<String>>,
    /// True to discard rank 0's results.
    silent: bool,
}

impl Lines {
    /// Lines of `world_size` ranks; `folder` gets a subfolder for each, with `stdout.log` and `stderr.log`.
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

    /// Processes a line.
    ///
    /// # Errors
    /// Fails if a log file cannot be written.
    pub fn take(&mut self, line: &Line) -> anyhow::Result<()> {
        self.keep(line)?;
        if self.silent || !self.is_shown(line) {
            return Ok(());
        }
        // Write errors are ignored: the reader may be gone.
        let _ = match (line.stream, line.rank) {
            (Stream::Out, Some(0)) => writeln!(std::io::stdout().lock(), "{}", line.text),
            (_, Some(rank)) if !self.alone => writeln!(std::io::stderr().lock(), "{}{}", prefix(rank), line.text),
            _ => writeln!(std::io::stderr().lock(), "{}", line.text),
        };
        Ok(())
    }

    /// Stops showing lines, but keeps them: what ranks log while they are being ended is of no interest.
    pub fn silence(&mut self) {
        self.silent = true;
    }

    /// Reports how a rank ended, and its last lines.
    pub fn tell(&self, death: &RankFailure) {
        let last = death.rank.and_then(|rank| self.last.get(&Some(rank)));
        let empty = VecDeque::new();
        let last = last.unwrap_or(&empty);
        log::error!(
            "{death}; {}",
            match last.is_empty() {
                true => "it wrote nothing",
                false => "its last lines:",
            }
        );
        for line in last {
            let name = death.rank.map(prefix).unwrap_or_default();
            let _ = writeln!(std::io::stderr().lock(), "  {name}{line}");
        }
    }

    /// Returns the lines without a rank: messages of the launcher.
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
        // mpirun writes much at the end, and how the first rank failed is at the start of it.
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

/// Reads lines to their end on a thread of its own; `read` assigns them to ranks.
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
