//! Process-wide setup: retention of freed memory, the waiting of candle's threads, f32 precision on a GPU.

pub mod allocations;
pub mod allocator;
pub mod exit;
pub mod memory;
pub mod panics;

/// Number of times that candle's own threads spin for the next operation before they sleep.
const SPINS: (&str, &str) = ("CANDLE_BARRIER_POOL_SPIN_LIMIT", "1");

/// cuDNN and cuBLAS may multiply f32 with ten bits of each factor (TF32), unless this is 0: then f32 has the same
/// precision on a GPU as on the CPU.
const TF32: (&str, &str) = ("NVIDIA_TF32_OVERRIDE", "0");

/// Sets up the process. Must be called before any thread is started.
///
/// A training step allocates and frees the same large buffers over and over. By default glibc returns each to the
/// system and gets it back page by page, zeroed: a third of a step's time on the CPU. So it is set to retain them.
/// (jemalloc and mimalloc were slower: docs/benchmarks.md.) Nothing changes on systems other than Linux with glibc.
///
/// candle adds and multiplies on threads of its own, which wait for more work in a busy loop on the same cores as
/// rayon's: on two cores, half of a small step. They are set to sleep, unless the environment sets this.
///
/// candle computes convolutions with cuDNN's default arithmetic, which for f32 is TF32, and offers no choice; the
/// libraries read the environment at their start, and so are set not to use TF32, unless it is set there. (Our own
/// products and candle's ask cuBLAS for full f32 anyway.)
pub fn set_up() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two numbers of the allocator, which is allowed at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
    #[cfg(unix)]
    // SAFETY: nothing is called back.
    unsafe {
        // Makes a file that grows beyond `ulimit -f` an ordinary error, not a signal that ends the process.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    for (name, value) in [SPINS, TF32] {
        if std::env::var_os(name).is_none() {
            // SAFETY: no other thread that might read the environment at the same time runs yet.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

/// Returns free memory to the system, at the end of a phase of the run.
pub fn release() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: only touches memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
