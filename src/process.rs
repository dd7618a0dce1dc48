//! What is set for the whole process: how freed memory is dealt with, how candle's threads wait, what f32 means on a GPU.

pub mod allocator;
pub mod memory;
pub mod panics;

/// candle's own threads spin this often for the next operation before they sleep.
const SPINS: (&str, &str) = ("CANDLE_BARRIER_POOL_SPIN_LIMIT", "1");

/// cuDNN and cuBLAS multiply what is f32 with ten bits of each factor (TF32) where they see fit, unless this is 0: f32 on a
/// GPU then means what it means on the CPU.
const TF32: (&str, &str) = ("NVIDIA_TF32_OVERRIDE", "0");

/// Sets the process up. To be called before any thread is started.
///
/// A training step takes and frees the same large buffers over and over. Left alone, glibc gives each back to the system and
/// has it handed out anew, page by page, zeroed: a third of a step's time on the CPU. It is told to hold on to them.
/// (jemalloc and mimalloc were slower: docs/benchmarks.md.) Elsewhere than on Linux with glibc nothing changes.
///
/// candle adds and multiplies on threads of its own, which wait for more work in a busy loop beside rayon's, on the same
/// cores: on two cores, half of a small step. They are told to sleep, unless the environment says something else.
///
/// candle makes convolutions with cuDNN's default kind of arithmetic, which for f32 is TF32, and lets nobody choose another; the
/// libraries themselves look at the environment when they start, and so are told to leave TF32 alone, unless it says
/// something else. (Our own products and candle's ask cuBLAS for whole f32 as it is.)
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
        // A file that grows beyond `ulimit -f` is an error like others, not a signal that ends the process.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
    for (name, value) in [SPINS, TF32] {
        if std::env::var_os(name).is_none() {
            // SAFETY: no other thread runs yet that might read the environment at the same time.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

/// Gives memory that is free now back to the system, when a part of the run is over.
pub fn release() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: only touches memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
