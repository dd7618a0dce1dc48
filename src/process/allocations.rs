//! Allocations of the program, as its allocator sees them: counted over all threads, or recorded one by one on a single
//! thread. Both need [`ReportingAllocator`](super::allocator::ReportingAllocator) as the global allocator, and cost the
//! reading of a flag while neither runs.

use std::alloc::Layout;
use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// Largest alignment of the allocations that are recorded: that of numbers. Tables and structures, whose sizes may depend on
/// hashes, have a larger one.
const WIDEST_NUMBER: usize = 4;

static COUNTS: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicI64 = AtomicI64::new(0);
static PEAK: AtomicI64 = AtomicI64::new(0);

thread_local! {
    /// The record of this thread, if there is one.
    static RECORD: Cell<*mut Vec<Entry>> = const { Cell::new(ptr::null_mut()) };
}

/// An entry of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Memory for numbers at this address.
    Taken {
        /// Address of the first byte.
        at: usize,
        /// Bytes.
        bytes: usize,
    },
    /// Release of the memory at this address.
    Released {
        /// Address of the first byte.
        at: usize,
        /// Bytes.
        bytes: usize,
    },
    /// Memory that grew or shrank, and may have moved.
    Resized {
        /// Address before.
        from: usize,
        /// Address after.
        at: usize,
        /// Bytes after.
        bytes: usize,
    },
    /// Memory that an op takes and releases on other threads: as many of its parts run at the same time as there are
    /// threads.
    Elsewhere {
        /// Bytes of all parts together.
        shared: usize,
        /// Bytes of each part.
        each: usize,
        /// Number of parts.
        parts: usize,
    },
    /// Event of the computation.
    Event(Event),
}

/// Events of a computation that a record mentions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An op begins, forward or backward.
    OpBegins,
    /// The op ends.
    OpEnds,
    /// A matrix of so many numbers that is stored in few bits is decoded.
    Decodes(usize),
    /// A part of the computation begins, by a number that the recorder chose.
    Part(usize),
}

/// Runs `compute` and returns what this thread allocated for numbers meanwhile, in order; nothing if the program has
/// another allocator.
pub fn record<T>(compute: impl FnOnce() -> T) -> (T, Vec<Entry>) {
    /// Ends the record, also if `compute` panics.
    struct Around;
    impl Drop for Around {
        fn drop(&mut self) {
            RECORD.set(ptr::null_mut());
        }
    }
    let mut entries = Vec::new();
    RECORD.set(&raw mut entries);
    let around = Around;
    let computed = compute();
    drop(around);
    (computed, entries)
}

/// Returns true while this thread's allocations are recorded.
pub fn is_recording() -> bool {
    !RECORD.get().is_null()
}

/// Runs work on numbers whose memory is there, unless this thread's allocations are recorded: a record is of memory alone, and
/// nobody reads its numbers.
pub fn compute(work: impl FnOnce()) {
    if !is_recording() {
        work();
    }
}

/// Mentions an event in the record, if there is one.
pub fn mention(event: Event) {
    push(Entry::Event(event));
}

/// Mentions memory of an op on other threads: `shared` bytes, and those of `each` of its `parts`.
pub fn elsewhere(shared: usize, each: usize, parts: usize) {
    push(Entry::Elsewhere { shared, each, parts });
}

/// Begins to count all allocations of the process, from 0.
pub fn count() {
    LIVE.store(0, Ordering::Relaxed);
    PEAK.store(0, Ordering::Relaxed);
    COUNTS.store(true, Ordering::Relaxed);
}

/// Returns the largest number of bytes that were allocated at the same time since [`count`] or the last call of this,
/// less those released of before; None if nothing is counted.
pub fn take_peak() -> Option<u64> {
    if !COUNTS.load(Ordering::Relaxed) {
        return None;
    }
    let peak = PEAK.swap(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
    Some(u64::try_from(peak).unwrap_or(0))
}

/// Notes memory that the allocator gave.
pub(super) fn taken(at: usize, layout: Layout) {
    if COUNTS.load(Ordering::Relaxed) {
        let bytes = layout.size() as i64;
        let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
        PEAK.fetch_max(live, Ordering::Relaxed);
    }
    if layout.align() <= WIDEST_NUMBER {
        push(Entry::Taken {
            at,
            bytes: layout.size(),
        });
    }
}

/// Notes memory that the allocator resized.
pub(super) fn resized(from: usize, before: Layout, at: usize, bytes: usize) {
    if COUNTS.load(Ordering::Relaxed) {
        let more = bytes as i64 - before.size() as i64;
        let live = LIVE.fetch_add(more, Ordering::Relaxed) + more;
        PEAK.fetch_max(live, Ordering::Relaxed);
    }
    if before.align() <= WIDEST_NUMBER {
        push(Entry::Resized { from, at, bytes });
    }
}

/// Notes memory that the allocator takes back.
pub(super) fn released(at: usize, layout: Layout) {
    if COUNTS.load(Ordering::Relaxed) {
        LIVE.fetch_sub(layout.size() as i64, Ordering::Relaxed);
    }
    if layout.align() <= WIDEST_NUMBER {
        push(Entry::Released {
            at,
            bytes: layout.size(),
        });
    }
}

/// Adds an entry. The record itself allocates, so there is none meanwhile.
fn push(entry: Entry) {
    let record = RECORD.replace(ptr::null_mut());
    // SAFETY: the record lives until `record` ends, which clears the pointer, and only this thread has it; taking the
    // pointer out keeps every other reference away.
    if let Some(entries) = unsafe { record.as_mut() } {
        entries.push(entry);
        RECORD.set(record);
    }
}
