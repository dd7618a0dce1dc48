//! Append-only files of whole records, which a run can do without for a while.
//!
//! A record that cannot be written is queued and written with the next one. A partial write is truncated, so that no
//! reader finds half a record followed by others.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::WriteError;

/// Limit in bytes for queued records; beyond it, the oldest are lost.
const MOST: usize = 16 << 20;

/// A file, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of whole records.
    whole: u64,
    /// True if there may be half a record after them.
    torn: bool,
    waiting: VecDeque<Vec<u8>>,
    /// Number of records lost for good.
    lost: usize,
    /// True if the last write failed and was logged.
    failing: bool,
}

impl Journal {
    /// Opens a file for appending, creating it if needed.
    pub fn open(path: &Path) -> Result<Self, WriteError> {
        Self::start(OpenOptions::new().append(true).create(true), path)
    }

    /// Creates a new file.
    ///
    /// # Errors
    /// Fails with `AlreadyExists`, among others.
    pub fn create(path: &Path) -> Result<Self, WriteError> {
        Self::start(OpenOptions::new().append(true).create_new(true), path)
    }

    fn start(options: &OpenOptions, path: &Path) -> Result<Self, WriteError> {
        let file = options.open(path).map_err(WriteError::at(path))?;
        let whole = file.metadata().map_err(WriteError::at(path))?.len();
        Ok(Self {
            path: path.into(),
            file,
            whole,
            torn: false,
            waiting: VecDeque::new(),
            lost: 0,
            failing: false,
        })
    }

    /// Appends a record, after the queued ones. Logs a failure once.
    pub fn add(&mut self, record: Vec<u8>) {
        self.waiting.push_back(record);
        let done = self.catch_up();
        self.tell(done);
        let mut bytes: usize = self.waiting.iter().map(Vec::len).sum();
        while bytes > MOST
            && let Some(oldest) = self.waiting.pop_front()
        {
            bytes -= oldest.len();
            self.lost += 1;
        }
    }

    /// Syncs everything appended so far, if possible.
    pub fn sync(&mut self) {
        let done = self.catch_up().and_then(|()| self.file.sync_all());
        self.tell(done);
    }

    fn catch_up(&mut self) -> io::Result<()> {
        while let Some(record) = self.waiting.front() {
            if self.torn {
                self.file.set_len(self.whole)?;
            }
            // One write: a reader of the growing file sees whole records.
            self.torn = true;
            let written = self.file.write_all(record);
            if written.is_err() && self.file.set_len(self.whole).is_ok() {
                self.torn = false;
            }
            written?;
            self.torn = false;
            self.whole += record.len() as u64;
            self.waiting.pop_front();
        }
        Ok(())
    }

    fn tell(&mut self, done: io::Result<()>) {
        match done {
            Ok(()) if self.failing => {
                self.failing = false;
                match std::mem::take(&mut self.lost) {
                    0 => log::info!("{}: is writable again, and no records were lost", self.path.display()),
                    lost => log::warn!("{}: is writable again; {lost} records were lost", self.path.display()),
                }
            }
            Err(cause) if !self.failing => {
                self.failing = true;
                let error = WriteError::at(&self.path)(cause);
                log::warn!("{error} (the run continues; unwritten records are queued)");
            }
            _ => {}
        }
    }
}
