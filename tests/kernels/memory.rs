//! Buffers for kernels, between pages that may not be touched.
//!
//! A buffer lies at one end of its pages or the other. What remains of them, and what a kernel is to write, is filled with
//! bytes that are NaN in every type; what it only reads may not be written.

use std::ptr::null_mut;

use candle_core::DType;
use half::bf16;
use vtrain::ops::kernel::Address;

const SPOILT: u8 = 0xff;

/// Which guarded page a buffer touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    Before,
    Behind,
}

/// Numbers at an address.
pub struct Buffer {
    room: *mut u8,
    inner: usize,
    offset: usize,
    count: usize,
    dtype: DType,
}

fn page() -> usize {
    // SAFETY: a question to the system.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

fn protect(at: *mut u8, bytes: usize, what: libc::c_int) {
    if bytes > 0 {
        // SAFETY: pages of a buffer's own mapping.
        assert_eq!(unsafe { libc::mprotect(at.cast(), bytes, what) }, 0);
    }
}

impl Buffer {
    /// Buffer for numbers, at the edge or `shift` numbers off it.
    pub fn new(count: usize, dtype: DType, edge: Edge, shift: usize) -> Self {
        let (size, page) = (dtype.size_in_bytes(), page());
        let bytes = (count + shift) * size;
        let inner = bytes.next_multiple_of(page);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let room = unsafe { libc::mmap(null_mut(), inner + 2 * page, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(room, libc::MAP_FAILED);
        let room: *mut u8 = room.cast();
        // SAFETY: within the mapping.
        protect(unsafe { room.add(page) }, inner, libc::PROT_READ | libc::PROT_WRITE);
        let offset = match edge {
            Edge::Before => page + shift * size,
            Edge::Behind => page + inner - bytes,
        };
        let mut buffer = Self {
            room,
            inner,
            offset,
            count,
            dtype,
        };
        buffer.pages().fill(SPOILT);
        buffer
    }

    /// Writes numbers, rounded to the buffer's type.
    pub fn fill(&mut self, numbers: &[f64]) {
        assert_eq!(numbers.len(), self.count);
        let size = self.dtype.size_in_bytes();
        let dtype = self.dtype;
        let places = self.bytes().chunks_exact_mut(size);
        for (place, number) in places.zip(numbers) {
            match dtype {
                DType::F32 => place.copy_from_slice(&(*number as f32).to_ne_bytes()),
                DType::BF16 => place.copy_from_slice(&bf16::from_f64(*number).to_ne_bytes()),
                DType::I64 => place.copy_from_slice(&(*number as i64).to_ne_bytes()),
                DType::F64 => place.copy_from_slice(&number.to_ne_bytes()),
                DType::U8 => place.copy_from_slice(&[*number as u8]),
                other => panic!("no buffers of {other:?}"),
            }
        }
    }

    /// Forbids writing.
    pub fn seal(&mut self) {
        // SAFETY: within the mapping.
        protect(unsafe { self.room.add(page()) }, self.inner, libc::PROT_READ);
    }

    pub fn address(&self) -> Address {
        self.room.wrapping_add(self.offset) as Address
    }

    /// The numbers.
    pub fn numbers(&mut self) -> Vec<f64> {
        let (size, dtype) = (self.dtype.size_in_bytes(), self.dtype);
        let places = self.bytes().chunks_exact(size);
        let number = |place: &[u8]| match dtype {
            DType::F32 => f64::from(f32::from_ne_bytes(place.try_into().unwrap())),
            DType::BF16 => bf16::from_ne_bytes(place.try_into().unwrap()).to_f64(),
            DType::F64 => f64::from_ne_bytes(place.try_into().unwrap()),
            DType::U8 => f64::from(place[0]),
            other => panic!("no numbers of {other:?}"),
        };
        places.map(number).collect()
    }

    /// Checks that the bytes around the numbers are unchanged.
    pub fn kept(&mut self) -> bool {
        let (start, end) = (
            self.offset - page(),
            self.offset - page() + self.count * self.dtype.size_in_bytes(),
        );
        let pages = self.pages();
        pages[..start].iter().chain(&pages[end..]).all(|byte| *byte == SPOILT)
    }

    fn bytes(&mut self) -> &mut [u8] {
        let (start, size) = (self.offset - page(), self.count * self.dtype.size_in_bytes());
        &mut self.pages()[start..start + size]
    }

    fn pages(&mut self) -> &mut [u8] {
        // SAFETY: the pages between the guarded ones, for as long as the buffer is borrowed. Whoever holds a sealed buffer
        // only reads.
        unsafe { std::slice::from_raw_parts_mut(self.room.add(page()), self.inner) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made.
        unsafe { libc::munmap(self.room.cast(), self.inner + 2 * page()) };
    }
}
