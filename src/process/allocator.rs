//! The system's allocator, which reports the requested size when memory runs out. Rust would abort with a core dump;
//! stable Rust has no other hook for a message.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;

use super::allocations;
/// Same as `commands::Exit::Training`, which is in a higher layer.
use super::exit::Exit;

/// Allocator to be used as the program's `#[global_allocator]`.
#[derive(Debug)]
pub struct ReportingAllocator;

// SAFETY: everything is delegated to the system's allocator; null never reaches the caller.
unsafe impl GlobalAlloc for ReportingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's guarantees are the system's.
        let memory = there(unsafe { System.alloc(layout) }, layout.size());
        allocations::taken(memory as usize, layout);
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        let memory = there(unsafe { System.alloc_zeroed(layout) }, layout.size());
        allocations::taken(memory as usize, layout);
        memory
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        let memory = there(unsafe { System.realloc(old, layout, size) }, size);
        allocations::resized(old as usize, layout, memory as usize, size);
        memory
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        allocations::released(old as usize, layout);
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

/// Writes the message without allocating, and exits at once: files are whole or hidden, as after a kill.
#[cold]
fn end(size: usize) -> ! {
    let mut text = [0; 400];
    let room = text.len();
    let mut rest = &mut text[..];
    let _ = writeln!(
        rest,
        "error: out of memory: {size} more bytes are not available. Give the process more (ulimit -v, the container's or the \
         machine's memory), or let it need less: model.dtype: bf16, train.gradient_checkpointing: true, fewer frames or \
         pixels in the buckets, train.batch_size: 1"
    );
    let length = room - rest.len();
    #[cfg(unix)]
    // SAFETY: the bytes are valid; `_exit` runs nothing that might allocate.
    unsafe {
        libc::write(2, text.as_ptr().cast(), length);
        libc::_exit(Exit::Training as i32)
    }
    #[cfg(not(unix))]
    {
        let _ = std::io::stderr().write_all(&text[..length]);
        std::process::exit(Exit::Training as i32)
    }
}
