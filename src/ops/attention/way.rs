//! By which kernels attention ran. All of them give the same numbers, and some take many times as long: so whoever measures
//! or checks attention says which it was.

use std::cell::RefCell;
use std::fmt;

use candle_core::DType;
use serde::Serialize;

thread_local! {
    static RAN: RefCell<Vec<Ran>> = const { RefCell::new(Vec::new()) };
}

/// The kernels of one kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The CPU's.
    Cpu,
    /// cuDNN's.
    Cudnn,
    /// Those of tiled.cu, without tensor cores.
    Tiled,
    /// candle's own operations.
    Composed,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cudnn => "cudnn",
            Self::Tiled => "tiled",
            Self::Composed => "composed",
        })
    }
}

/// Attention as it ran, there or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ran {
    pub way: Way,
    pub dtype: DType,
    /// Features of a head.
    pub width: usize,
}

impl Ran {
    /// Whether cuDNN could have done it on a card that training is for, and did not.
    pub fn is_needlessly_slow(&self) -> bool {
        const WIDEST: usize = 128;
        let slow = matches!(self.way, Way::Tiled | Way::Composed);
        slow && self.dtype == DType::BF16 && self.width <= WIDEST && self.width.is_multiple_of(8)
    }
}

/// Notes that attention ran so, on this thread.
pub(super) fn note(way: Way, dtype: DType, width: usize) {
    let ran = Ran { way, dtype, width };
    RAN.with_borrow_mut(|all| {
        if !all.contains(&ran) {
            all.push(ran);
        }
    });
}

/// How attention has run on this thread since this was last asked: every way, type and width once.
pub fn take() -> Vec<Ran> {
    RAN.take()
}

/// The ways alone, each once.
pub fn ways(ran: &[Ran]) -> Vec<Way> {
    let mut ways: Vec<Way> = ran.iter().map(|ran| ran.way).collect();
    ways.sort_unstable();
    ways.dedup();
    ways
}
