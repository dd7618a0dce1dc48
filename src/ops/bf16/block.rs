//! Products of a block: `c = a b` or `c += a b` for 32 rows and 32 columns, over some steps of 32 along the inner axis.

#[cfg(target_arch = "x86_64")]
use super::amx::{self, Tiles};
#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::left::Left;
use super::line::{Line, Sums};
use super::{Isa, emulated};

/// Registers of the calling thread that blocks need, until it is dropped. No rayon call may stand in between: the thread
/// might run another task meanwhile, which drops its own.
#[derive(Debug)]
pub struct Registers {
    isa: Isa,
    #[cfg(target_arch = "x86_64")]
    _tiles: Option<Tiles>,
}

impl Registers {
    /// Prepares them. Panics if the machine does not have the instructions.
    pub fn new(isa: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Avx512 {
            assert!(avx512::available(), "no AVX-512 BF16 on this machine");
        }
        Self {
            isa,
            #[cfg(target_arch = "x86_64")]
            _tiles: (isa == Isa::Amx).then(Tiles::new),
        }
    }

    /// Computes a block, from 0 or added to what c holds.
    ///
    /// # Safety
    /// a and b can be read for that many steps, at least one.
    #[inline]
    pub unsafe fn block(&self, steps: usize, a: Left, b: *const Line, c: &mut Sums, add: bool) {
        // SAFETY: the caller's; the registers are there.
        unsafe {
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Amx => amx::block(steps, a, b, c, add),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512::block(steps, a, b, c, add),
                Isa::Emulated => emulated::block(steps, a, b, c, add),
            }
        }
    }
}
