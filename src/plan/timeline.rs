//! Memory over the time of a computation, for sizes other than those at which it was recorded.
//!
//! A computation that is recorded several times, on inputs of several sizes, takes and releases the same tensors in the same
//! order. The size of each is linear in the number of tokens of the clip and of the text, or in the rows and columns of
//! pixels, so that it is a weighted sum of the recorded ones at any other size; and the sum of all is the level of memory at
//! each moment.

use std::collections::HashMap;

use anyhow::ensure;

use super::excerpt::Representative;
use crate::process::allocations::{Entry, Event};

/// Bytes of a number that a GPU decodes to.
const HALF: f64 = 2.0;

/// Change of the memory in use.
#[derive(Debug, Clone, Copy)]
struct Change {
    /// Kind of the entry, the same in all records.
    kind: Kind,
    /// Bytes that stay, negative for a release.
    lasting: f64,
    /// Bytes that are there at this moment only.
    passing: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Memory that an op's result takes.
    Lasting,
    /// Memory that an op takes and releases on the way.
    WithinOp,
    /// Memory between ops.
    Between,
    /// Memory of a matrix that is decoded.
    Decoded,
    /// Another part of the computation begins.
    Part(usize),
    /// The beginning or the end of an op.
    Border,
}

impl Change {
    fn times(self, weight: f64) -> Self {
        Self {
            kind: self.kind,
            lasting: self.lasting * weight,
            passing: self.passing * weight,
        }
    }
}

/// Place where the memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Main memory: ops compute in f32 and convert what is stored in another type, on so many threads.
    Host {
        /// Threads.
        threads: usize,
    },
    /// A GPU: ops compute in the tensors' own type, and decode whole matrices.
    Gpu,
}

/// Record of a computation at one size.
#[derive(Debug, Clone)]
pub struct Record(Vec<Change>);

impl Record {
    /// Takes what was allocated, for a place.
    ///
    /// # Errors
    /// Fails for a record without allocations.
    pub fn new(entries: &[Entry], place: Place) -> anyhow::Result<Self> {
        ensure!(
            entries.iter().any(|entry| matches!(entry, Entry::Taken { .. })),
            "the program's allocator does not record; this is a fault of the program"
        );
        Ok(Self(changes(entries, place)))
    }
}

/// Memory of a computation over time.
#[derive(Debug, Clone)]
pub struct Timeline(Vec<Change>);

/// Level of memory: bytes over those before the computation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Level {
    /// Highest level.
    pub peak: f64,
    /// Level at the end.
    pub end: f64,
}

impl Timeline {
    /// Adds up records of the same computation at several sizes, each with a weight; the weights' sum is 1.
    ///
    /// # Errors
    /// Fails for records of different computations.
    pub fn new<'a>(records: impl IntoIterator<Item = (&'a Record, f64)>) -> anyhow::Result<Self> {
        let mut records = records.into_iter();
        let Some((Record(first), weight)) = records.next() else {
            return Ok(Self(Vec::new()));
        };
        let mut all: Vec<Change> = first.iter().map(|change| change.times(weight)).collect();
        for (Record(changes), weight) in records {
            let alike = all.len() == changes.len() && all.iter().zip(changes).all(|(a, b)| a.kind == b.kind);
            ensure!(
                alike,
                "the same computation took other memory at another size; this is a fault of the program"
            );
            for (sum, change) in all.iter_mut().zip(changes) {
                let change = change.times(weight);
                sum.lasting += change.lasting;
                sum.passing += change.passing;
            }
        }
        Ok(Self(all))
    }

    /// Repeats the parts of the blocks that stand for others, there and back.
    pub fn repeated(&self, blocks: &[Representative]) -> Self {
        let mut all = Vec::with_capacity(self.0.len());
        for (part, changes) in self.parts() {
            let block = part.and_then(|part| blocks.get(part.checked_sub(1)?));
            for _ in 0..=block.map_or(0, |block| block.more) {
                all.extend_from_slice(changes);
            }
        }
        Self(all)
    }

    /// Returns the bytes that the first run of a part leaves behind.
    pub fn left_by(&self, part: usize) -> f64 {
        let parts = self.parts();
        let first = parts.iter().find(|(found, _)| *found == Some(part));
        first.map_or(0.0, |(_, changes)| changes.iter().map(|change| change.lasting).sum())
    }

    /// Returns the highest and the last level.
    pub fn level(&self) -> Level {
        let mut level = Level::default();
        for change in &self.0 {
            level.end += change.lasting;
            level.peak = level.peak.max(level.end + change.passing);
        }
        level
    }

    /// Splits at the beginnings of parts; what comes before the first belongs to none.
    fn parts(&self) -> Vec<(Option<usize>, &[Change])> {
        let begins = |change: &Change| matches!(change.kind, Kind::Part(_));
        let chunks = self.0.chunk_by(|_, next| !begins(next));
        let part = |changes: &[Change]| match changes.first()?.kind {
            Kind::Part(part) => Some(part),
            _ => None,
        };
        chunks.map(|changes| (part(changes), changes)).collect()
    }
}

/// Converts entries to changes at a place.
fn changes(entries: &[Entry], place: Place) -> Vec<Change> {
    let entries = &settled(entries)[..];
    let within = taken_within_ops(entries);
    let mut all = Vec::with_capacity(entries.len());
    let (mut depth, mut between) = (0usize, Between::default());
    for (entry, within) in entries.iter().zip(within) {
        let change = |kind, lasting: f64, passing: f64| Change { kind, lasting, passing };
        let bytes = match *entry {
            Entry::Taken { bytes, .. } => bytes as f64,
            Entry::Released { bytes, .. } => -(bytes as f64),
            Entry::Resized { .. } => continue,
            Entry::Elsewhere { shared, each, parts } => {
                if let Place::Host { threads } = place {
                    all.push(change(Kind::WithinOp, 0.0, (shared + each * parts.min(threads)) as f64));
                }
                continue;
            }
            Entry::Event(event) => {
                if depth == 0 {
                    all.push(between.end());
                }
                match event {
                    Event::OpBegins => depth += 1,
                    Event::OpEnds => depth = depth.saturating_sub(1),
                    Event::Decodes(_) | Event::Part(_) => {}
                }
                all.push(match (event, place) {
                    (Event::Decodes(numbers), Place::Gpu) => change(Kind::Decoded, 0.0, HALF * numbers as f64),
                    (Event::Part(part), _) => change(Kind::Part(part), 0.0, 0.0),
                    _ => change(Kind::Border, 0.0, 0.0),
                });
                continue;
            }
        };
        match (depth, within, place) {
            (0, ..) => between.add(bytes),
            (_, true, Place::Gpu) => {}
            (_, true, Place::Host { .. }) => all.push(change(Kind::WithinOp, bytes, 0.0)),
            (_, false, _) => all.push(change(Kind::Lasting, bytes, 0.0)),
        }
    }
    all.push(between.end());
    all
}

/// Memory between two ops. What happens there may take other steps at another size, so that only its peak and its end count.
#[derive(Default)]
struct Between {
    level: f64,
    peak: f64,
}

impl Between {
    fn add(&mut self, bytes: f64) {
        self.level += bytes;
        self.peak = self.peak.max(self.level);
    }

    /// Returns the change, and begins anew.
    fn end(&mut self) -> Change {
        let ended = std::mem::take(self);
        Change {
            kind: Kind::Between,
            lasting: ended.level,
            passing: ended.peak - ended.level,
        }
    }
}

/// Replaces memory that grows by memory of its last size: how often it grows depends on the size.
fn settled(entries: &[Entry]) -> Vec<Entry> {
    let mut settled: Vec<Entry> = Vec::with_capacity(entries.len());
    let mut places = HashMap::new();
    for entry in entries {
        match *entry {
            Entry::Taken { at, .. } => drop(places.insert(at, settled.len())),
            Entry::Released { at, .. } => drop(places.remove(&at)),
            Entry::Resized { from, at, bytes } => {
                if let Some(place) = places.remove(&from) {
                    places.insert(at, place);
                    settled[place] = Entry::Taken { at, bytes };
                }
                continue;
            }
            Entry::Elsewhere { .. } | Entry::Event(_) => {}
        }
        settled.push(*entry);
    }
    settled
}

/// Returns for each entry whether its memory is taken and released within the same op.
fn taken_within_ops(entries: &[Entry]) -> Vec<bool> {
    let mut within = vec![false; entries.len()];
    let (mut depth, mut open) = (0usize, HashMap::new());
    for (index, entry) in entries.iter().enumerate() {
        match *entry {
            Entry::Event(Event::OpBegins) => {
                depth += 1;
                if depth == 1 {
                    open.clear();
                }
            }
            Entry::Event(Event::OpEnds) => depth = depth.saturating_sub(1),
            Entry::Taken { at, .. } if depth > 0 => drop(open.insert(at, index)),
            Entry::Released { at, .. } if depth > 0 => {
                if let Some(taken) = open.remove(&at) {
                    within[taken] = true;
                    within[index] = true;
                }
            }
            _ => {}
        }
    }
    within
}
