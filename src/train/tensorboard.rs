//! Event files for TensorBoard.
//!
//! An event file is a sequence of records: the length of the data as u64, its checksum, the data, their checksum;
//! checksums are CRC-32C, masked; numbers are little-endian (TensorFlow's TFRecord). The data are a protobuf `Event`;
//! its field 2 is the step, 5 a summary: scalars or a picture.
//!
//! Events and records come from `tensorboard-rs`. Its `SummaryWriter` is not used: it writes from its own thread, which
//! panics when the disk is full, and its file names collide within a second. Here a record is one write, and a failed
//! one is queued.
//!
//! Every start of a run begins a file. A resumed run first removes events past its step from the existing files
//! ([`cut_back`]): events are in the order of their steps, so each file is truncated at its first record past that
//! step, or at the record that a killed process left torn.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use protobuf::Message as _;
use tensorboard_proto::event::Event;
use tensorboard_proto::summary::Summary;
use tensorboard_rs::masked_crc32c::masked_crc32c;
use tensorboard_rs::record_writer::RecordWriter;
use tensorboard_rs::summary;

use crate::disk::{Journal, WriteError};
use crate::protobuf_wire::{Message, Value};
use crate::video::Frames;

/// Prefix of event file names; the time in seconds follows, by which TensorBoard orders them.
const PREFIX: &str = "events.out.tfevents.";
/// Frames of a clip that are shown next to each other.
const SHOWN: usize = 4;

/// An event file, open for appending.
#[derive(Debug)]
pub struct Events {
    records: Journal,
}

impl Events {
    /// Creates a file in `folder`, whose name sorts after all existing ones.
    pub fn create(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).map_err(WriteError::at(folder))?;
        let newest = event_files(folder)?.iter().filter_map(|path| second_of(path)).max();
        let mut second = (now() as u64).max(newest.map_or(0, |second| second.saturating_add(1)));
        let records = loop {
            match Journal::create(&folder.join(format!("{PREFIX}{second:010}.vtrain"))) {
                Ok(records) => break records,
                // Another process was quicker.
                Err(error) if error.cause.kind() == ErrorKind::AlreadyExists => second += 1,
                Err(error) => return Err(error.into()),
            }
        };
        let mut events = Self { records };
        let mut version = Event::new();
        version.set_file_version("brain.Event:2".into());
        events.add(version)?;
        Ok(events)
    }

    /// Writes numbers of a step, all in one event.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> anyhow::Result<()> {
        let mut all = Summary::new();
        for (tag, value) in scalars {
            let one = summary::scalar(tag, *value as f32).take_value();
            all.mut_value().extend(one);
        }
        self.summary(step, all)
    }

    /// Writes a clip under `tag`: some of its frames, including the first and the last, next to each other.
    pub fn frames(&mut self, step: u64, tag: &str, frames: &Frames) -> anyhow::Result<()> {
        let Some((picture, width)) = strip(frames) else {
            return Ok(()); // no pixels
        };
        // tensorboard-rs takes the rows of (height, width, 3) for (width, height) and swaps both sides when writing.
        let mut all = summary::image(tag, &picture, &[3, width, frames.height]);
        for value in all.mut_value() {
            let image = value.mut_image();
            image.set_height(frames.height as i32);
            image.set_width(width as i32);
        }
        self.summary(step, all)
    }

    /// Syncs all events, if possible.
    pub fn sync(&mut self) {
        self.records.sync();
    }

    fn summary(&mut self, step: u64, summary: Summary) -> anyhow::Result<()> {
        let mut event = Event::new();
        event.set_step(i64::try_from(step).context("a step beyond 63 bits")?);
        event.set_summary(summary);
        self.add(event)
    }

    fn add(&mut self, mut event: Event) -> anyhow::Result<()> {
        event.set_wall_time(now());
        let mut record = Vec::new();
        RecordWriter::new(&mut record).write(&event.write_to_bytes()?)?;
        self.records.add(record);
        Ok(())
    }
}

/// Removes what is past `resumed_at` from the event files of a folder; files without a summary, and all of them if a
/// run starts anew, are removed.
pub fn cut_back(folder: &Path, resumed_at: Option<u64>) -> anyhow::Result<()> {
    for path in event_files(folder)? {
        let kept = match resumed_at {
            Some(step) => keep(&path, step).with_context(|| format!("{}: cannot be read", path.display()))?,
            None => ValidPrefix::default(),
        };
        let cut = if kept.summaries == 0 {
            std::fs::remove_file(&path)
        } else {
            cut_to(&path, kept.bytes)
        };
        cut.map_err(WriteError::at(&path))?;
    }
    Ok(())
}

/// Part of an event file that is kept.
#[derive(Debug, Default)]
struct ValidPrefix {
    bytes: u64,
    summaries: usize,
}

fn cut_to(path: &Path, bytes: u64) -> std::io::Result<()> {
    if std::fs::metadata(path)?.len() == bytes {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(bytes)?;
    file.sync_all()
}

/// Reads the records up to the first that is torn or past `step`.
fn keep(path: &Path, step: u64) -> std::io::Result<ValidPrefix> {
    let file = File::open(path)?;
    let mut left = file.metadata()?.len();
    let mut file = BufReader::new(file);
    let mut kept = ValidPrefix::default();
    while let Some(data) = record(&mut file, left)? {
        let Ok(event) = EventHeader::of(&data) else {
            break;
        };
        if event.step > i64::try_from(step).unwrap_or(i64::MAX) {
            break;
        }
        let size = FRAME + data.len() as u64;
        left -= size;
        kept.bytes += size;
        kept.summaries += usize::from(event.is_summary);
    }
    Ok(kept)
}

/// Bytes around the data of a record.
const FRAME: u64 = 16;

/// Reads the data of the next record of a file with `left` bytes left; `None` if it is incomplete.
fn record(file: &mut impl Read, left: u64) -> std::io::Result<Option<Vec<u8>>> {
    let Some(room) = left.checked_sub(FRAME) else {
        return Ok(None);
    };
    let (mut length, mut checksum) = ([0; 8], [0; 4]);
    file.read_exact(&mut length)?;
    file.read_exact(&mut checksum)?;
    let bytes = u64::from_le_bytes(length);
    if masked_crc32c(&length) != u32::from_le_bytes(checksum) || bytes > room {
        return Ok(None);
    }
    let mut data = vec![0; bytes as usize];
    file.read_exact(&mut data)?;
    file.read_exact(&mut checksum)?;
    Ok((masked_crc32c(&data) == u32::from_le_bytes(checksum)).then_some(data))
}

/// Fields of an event that truncation needs.
struct EventHeader {
    step: i64,
    is_summary: bool,
}

impl EventHeader {
    fn of(data: &[u8]) -> anyhow::Result<Self> {
        let mut seen = Self {
            step: 0,
            is_summary: false,
        };
        for field in Message::new(data, 0..data.len()) {
            let field = field?;
            match (field.number, field.value) {
                (2, Value::Integer(step)) => seen.step = step as i64,
                (2, _) => bail!("a step that is not an integer"),
                (5, _) => seen.is_summary = true,
                _ => {}
            }
        }
        Ok(seen)
    }
}

/// Returns the event files of a folder, oldest first; none without a folder.
fn event_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("{}: cannot be read", folder.display())),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("{}: cannot be read", folder.display()))?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn second_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    name.split('.').next()?.parse().ok()
}

/// Returns the seconds since 1970.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// Joins frames spread over a clip to one picture (H, W, 3), returned with its width; `None` for a clip without pixels.
fn strip(frames: &Frames) -> Option<(Vec<u8>, usize)> {
    let row = frames.width * 3;
    let pictures: Vec<&[u8]> = frames.iter().collect();
    let last = pictures.len().checked_sub(1)?;
    let shown = pictures.len().min(SHOWN);
    let chosen: Vec<&[u8]> = (0..shown).map(|i| pictures[i * last / (shown - 1).max(1)]).collect();
    let mut strip = Vec::with_capacity(chosen.len() * frames.height * row);
    for y in 0..frames.height {
        for picture in &chosen {
            strip.extend_from_slice(&picture[y * row..(y + 1) * row]);
        }
    }
    (!strip.is_empty()).then_some((strip, shown * frames.width))
}
