//! Whether the same numbers must come out in the same bits in every run, also where that takes longer.
//!
//! A property of the process, as what its environment sets: ops look at it where they choose between algorithms. Kernels of
//! ours sum in fixed orders in any case; cuDNN's way back through attention does only where it is told to.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUIRED: AtomicBool = AtomicBool::new(false);

/// From now on it is, or is not.
pub fn require(on: bool) {
    REQUIRED.store(on, Ordering::Relaxed);
}

pub fn required() -> bool {
    REQUIRED.load(Ordering::Relaxed)
}
