//! Records the kernels that attention ran on. All give the same numbers, but some take many times as long, so
//! benchmarks and checks report which one ran.

use std::cell::RefCell;
use std::fmt;

use candle_core::DType;
use serde::Serialize;

thread_local! {
    static RAN: RefCell<Vec<Ran>> = const { RefCell::new(Vec::new()) };
}

/// Attention implementations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Our CPU kernels.
    Cpu,
    /// cuDNN.
    Cudnn,
    /// Kernels of tiled.cu, without tensor cores.
    Tiled,
    /// candle's own operations.
    Composed,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cudnn => "cudnn",
            Self::Tiled => "tiled",
            Self::Composed => "composed",
        })
    }
}

/// One kind of attention call, forward or backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ran {
    /// Implementation that ran.
    pub way: Backend,
    /// Number format of queries, keys and values.
    pub dtype: DType,
    /// Features per head.
    pub width: usize,
}

impl Ran {
    /// True if cuDNN could have run it on a supported training card, and did not.
    pub fn is_needlessly_slow(&self) -> bool {
        const WIDEST: usize = 128;
        let slow = matches!(self.way, Backend::Tiled | Backend::Composed);
        slow && self.dtype == DType::BF16 && self.width <= WIDEST && self.width.is_multiple_of(8)
    }
}

/// Records a call of attention on this thread.
pub(super) fn note(way: Backend, dtype: DType, width: usize) {
    let ran = Ran { way, dtype, width };
    RAN.with_borrow_mut(|all| {
        if !all.contains(&ran) {
            all.push(ran);
        }
    });
}

/// Returns and clears this thread's record: every combination of backend, type and width once.
pub fn take() -> Vec<Ran> {
    RAN.take()
}

/// Returns the distinct backends.
pub fn ways(ran: &[Ran]) -> Vec<Backend> {
    let mut ways: Vec<Backend> = ran.iter().map(|ran| ran.way).collect();
    ways.sort_unstable();
    ways.dedup();
    ways
}
