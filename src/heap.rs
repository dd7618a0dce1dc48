//! How the C library's allocator deals with freed memory.
//!
//! A training step takes and frees the same large buffers over and over. Left alone, glibc gives each back to the system and
//! has it handed out anew, page by page, zeroed: a third of a step's time on the CPU. It is told to hold on to them, and to
//! let go when a part of the run is over. (jemalloc and mimalloc were slower here: docs/benchmarks.md.)

/// Holds on to freed memory from now on. Elsewhere than on Linux with glibc nothing changes.
pub fn keep() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two numbers of the allocator, which is allowed at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// Gives what is free now back to the system, for other programs.
pub fn release() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: only touches memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
