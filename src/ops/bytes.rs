//! Bytes of frozen matrices: own ones, or a part of a slot that holds one block after the other.

use std::fmt;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Multiple at which the parts of a slot begin: what a GPU reads at once, and any number's alignment.
pub const ALIGNMENT: usize = 256;

/// Place of the same bytes in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub path: Arc<Path>,
    /// Place of the first byte.
    pub offset: u64,
}

/// Bytes that are never changed while they are held. A copy shares them.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
    origin: Option<Origin>,
}

#[derive(Clone)]
enum Owner {
    Bytes(Arc<Vec<u8>>),
    Numbers(Arc<Vec<f32>>),
    Slot(Arc<Slot>),
}

impl Bytes {
    /// Part of a slot.
    pub fn of_slot(slot: &Arc<Slot>, range: Range<usize>) -> Self {
        Self {
            owner: Owner::Slot(slot.clone()),
            range,
            origin: None,
        }
    }

    /// Adds the place of the same bytes in a file.
    pub fn with_origin(self, origin: Option<Origin>) -> Self {
        Self { origin, ..self }
    }

    /// Returns the place of the same bytes in a file, if they are in one.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            range: 0..bytes.len(),
            owner: Owner::Bytes(Arc::new(bytes)),
            origin: None,
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all = match &self.owner {
            Owner::Bytes(bytes) => bytes,
            Owner::Numbers(numbers) => as_bytes(numbers),
            Owner::Slot(slot) => slot.bytes(),
        };
        &all[self.range.clone()]
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl<B: AsRef<[u8]> + ?Sized> PartialEq<B> for Bytes {
    fn eq(&self, other: &B) -> bool {
        **self == *other.as_ref()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.range.len())
    }
}

/// Numbers in f32 as [`Bytes`].
#[derive(Debug, Clone)]
pub struct Numbers(pub Bytes);

impl From<Vec<f32>> for Numbers {
    fn from(numbers: Vec<f32>) -> Self {
        Self(Bytes {
            range: 0..size_of_val(&numbers[..]),
            owner: Owner::Numbers(Arc::new(numbers)),
            origin: None,
        })
    }
}

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        numbers_in(&self.0)
    }
}

/// Returns bytes as numbers, which begin where such numbers may: at the beginning of a vector of them, or of a slot's part.
pub(super) fn numbers_in<T: PlainNumber>(bytes: &[u8]) -> &[T] {
    // SAFETY: every pattern of bits is a `T`.
    let (before, numbers, after) = unsafe { bytes.align_to::<T>() };
    assert!(
        before.is_empty() && after.is_empty(),
        "numbers begin between two of them"
    );
    numbers
}

/// Number types of which every pattern of bits is a number.
pub(super) trait PlainNumber: Copy {}
impl PlainNumber for f32 {}
impl PlainNumber for half::bf16 {}

fn as_bytes(numbers: &[f32]) -> &[u8] {
    // SAFETY: numbers are bytes, without padding.
    unsafe { numbers.align_to::<u8>().1 }
}

/// Sums of bytes that are held at present, and at most.
#[derive(Debug, Default)]
pub struct LiveBytes {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl LiveBytes {
    /// Returns the bytes held at present.
    pub fn now(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// Returns the most bytes that were held at once.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// Adds bytes that are held from now on.
    pub fn add(&self, bytes: usize) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.most.fetch_max(now, Ordering::Relaxed);
    }

    /// Removes bytes that are held no more.
    pub fn remove(&self, bytes: usize) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Room for a block, filled again and again.
pub struct Slot {
    lines: Vec<Line>,
    live: Arc<LiveBytes>,
}

#[derive(Clone, Copy)]
#[repr(C, align(256))] // ALIGNMENT
struct Line([u8; ALIGNMENT]);

impl Slot {
    /// Slot for this many bytes, counted in `live` while it is there.
    pub fn new(bytes: usize, live: &Arc<LiveBytes>) -> Self {
        let lines = vec![Line([0; ALIGNMENT]); bytes.div_ceil(ALIGNMENT)];
        live.add(size_of_val(&lines[..]));
        Self {
            lines,
            live: live.clone(),
        }
    }

    /// Returns all of its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: lines are bytes, without padding.
        unsafe { self.lines.align_to::<u8>().1 }
    }

    /// Returns all of its bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: lines are bytes, without padding.
        unsafe { self.lines.align_to_mut::<u8>().1 }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.live.remove(size_of_val(&self.lines[..]));
    }
}
