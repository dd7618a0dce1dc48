//! The most bytes that a thread holds at a time, by an allocator that counts. Tensors are allocated by the thread that
//! computes them, so that tests beside this one count for nothing.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

use vtrain::process::allocator::ReportingAllocator;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends has no counter any more.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: everything is delegated to the program's own allocator, which plans are made from; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's guarantees are that allocator's.
        unsafe { ReportingAllocator.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { ReportingAllocator.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { ReportingAllocator.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { ReportingAllocator.dealloc(old, layout) }
    }
}

/// Returns what `work` returns, and the most bytes that this thread held meanwhile, besides those from before.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = HELD.get();
    PEAK.set(before);
    let done = work();
    (done, (PEAK.get() - before).max(0) as u64)
}

/// Runs `work` where everything that is computed in parallel runs on one thread, too.
pub fn on_one_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(work)
}

#[test]
fn the_most_that_is_held_at_a_time_counts() {
    let (_, bytes) = peak(|| {
        drop(vec![0u8; 5000]);
        vec![0u8; 7000]
    });
    assert_eq!(bytes, 7000);
}
