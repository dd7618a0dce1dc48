//! Process-wide switch for bitwise reproducible results, at some cost in speed.
//!
//! Ops consult it when they choose an algorithm. Our own kernels sum in fixed orders in any case; cuDNN's backward pass
//! of attention does so only on request.

use std::sync::atomic::{AtomicBool, Ordering};

static REQUIRED: AtomicBool = AtomicBool::new(false);

/// Turns the requirement on or off.
pub fn require(on: bool) {
    REQUIRED.store(on, Ordering::Relaxed);
}

/// True if results must be the same in every run.
pub fn required() -> bool {
    REQUIRED.load(Ordering::Relaxed)
}
