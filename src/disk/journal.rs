//! Files that grow by whole records, and that a run can do without for a while.
//!
//! A record that cannot be written waits and is written with the next; what of it has come to the file is cut off again,
//! so that no reader ever finds half a record with others behind it.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::WriteError;

/// Records that wait may take so many bytes; of more, the oldest are lost.
const MOST: usize = 16 << 20;

/// A file, open at its end.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of whole records.
    whole: u64,
    /// Whether there may be half a record behind them.
    torn: bool,
    waiting: VecDeque<Vec<u8>>,
    /// Records that will never be written.
    lost: usize,
    /// Whether the last try failed, and was told of.
    failing: bool,
}

impl Journal {
    /// Opens a file at its end; one that is not there is made.
    pub fn open(path: &Path) -> Result<Self, WriteError> {
        Self::start(OpenOptions::new().append(true).create(true), path)
    }

    /// Makes a new file.
    ///
    /// # Errors
    /// `AlreadyExists`, among others.
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

    /// Adds a record, behind those that wait. What goes wrong is told of once.
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

    /// Brings all that was added to the disk, as far as that is possible.
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
                    0 => log::info!("{}: is written again, and nothing of it is lost", self.path.display()),
                    lost => log::warn!("{}: is written again; {lost} records are lost", self.path.display()),
                }
            }
            Err(cause) if !self.failing => {
                self.failing = true;
                let error = WriteError::at(&self.path)(cause);
                log::warn!("{error} (the run goes on; what is not written waits)");
            }
            _ => {}
        }
    }
}
