//! The system's allocator, which says what it was asked for where there is no memory left. Rust would abort with a core
//! dump; stable Rust has no other place to say something.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;

/// As `commands::Exit::Training`, which stands on a higher floor.
const EXIT: i32 = 5;

/// To be the program's `#[global_allocator]`.
#[derive(Debug)]
pub struct Telling;

// SAFETY: all is left to the system's allocator; its null never comes back.
unsafe impl GlobalAlloc for Telling {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the system's.
        there(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        there(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        there(unsafe { System.realloc(old, layout, size) }, size)
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

fn there(memory: *mut u8, size: usize) -> *mut u8 {
    if memory.is_null() {
        end(size);
    }
    memory
}

/// Says it without allocating, and ends the process as it stands: files are whole or hidden, as after a kill.
#[cold]
fn end(size: usize) -> ! {
    let mut text = [0; 400];
    let room = text.len();
    let mut rest = &mut text[..];
    let _ = writeln!(
        rest,
        "error: out of memory: {size} bytes more cannot be had. Give the process more (ulimit -v, the container's or the \
         machine's memory), or let it need less: model.dtype: bf16, train.gradient_checkpointing: true, fewer frames or \
         pixels in the buckets, train.batch_size: 1"
    );
    let length = room - rest.len();
    #[cfg(unix)]
    // SAFETY: the bytes are there; `_exit` runs nothing that might allocate.
    unsafe {
        libc::write(2, text.as_ptr().cast(), length);
        libc::_exit(EXIT)
    }
    #[cfg(not(unix))]
    {
        let _ = std::io::stderr().write_all(&text[..length]);
        std::process::exit(EXIT)
    }
}
