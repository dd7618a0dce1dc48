//! Blocks by Intel's tiles. Their intrinsics are not stable in Rust, so the instructions are written out.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use super::left::Left;
use super::line::{Line, Sums};

/// Returns true if there are tiles, and the system lets this process use them: asked once, for all threads.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let both = 1 << 24 | 1 << 22; // AMX-TILE, AMX-BF16
        let has = is_x86_feature_detected!("avx512bw") && __cpuid_count(7, 0).edx & both == both;
        has && allowed()
    })
}

/// Asks Linux for the state of the tiles. Documentation/arch/x86/xstate.rst
#[cfg(target_os = "linux")]
fn allowed() -> bool {
    const REQUEST: libc::c_long = 0x1023; // ARCH_REQ_XCOMP_PERM
    const TILE_DATA: libc::c_long = 18; // XFEATURE_XTILE_DATA
    // SAFETY: the call changes nothing but what the process may do.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> bool {
    false
}

/// Tiles of 16 lines of 64 bytes, for the calling thread, until it is dropped.
#[derive(Debug)]
pub struct Tiles(());

impl Tiles {
    /// Configures them. The processor has them, and they are allowed.
    pub fn new() -> Self {
        #[repr(C, align(64))]
        struct Config([u8; 64]);
        assert!(available(), "no tiles on this machine");
        let mut config = Config([0; 64]);
        config.0[0] = 1; // the palette
        for tile in 0..8 {
            config.0[16 + 2 * tile] = 64; // bytes of a line
            config.0[48 + tile] = 16; // lines
        }
        // SAFETY: the tiles are there and allowed.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// As [`super::block::block`].
///
/// # Safety
/// As there; `Tiles` are configured; at least one step.
#[inline]
pub unsafe fn block(steps: usize, a: Left, b: *const Line, c: &mut Sums, add: bool) {
    let (upper, lower) = (a.row(0), a.row(16));
    // SAFETY: the caller's.
    unsafe {
        asm!(
            "test {add:e}, {add:e}",
            "jnz 2f",
            "tilezero tmm0; tilezero tmm1; tilezero tmm2; tilezero tmm3",
            "jmp 3f",
            "2:",
            "tileloadd tmm0, [{c} + {wide}]; tileloadd tmm1, [{c} + {wide} + 64]",
            "tileloadd tmm2, [{c} + {wide} + 2048]; tileloadd tmm3, [{c} + {wide} + 2112]",
            "3:",
            "tileloadd tmm6, [{b} + {line}]; tileloadd tmm4, [{upper} + {row}]; tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {line} + 1024]; tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower} + {row}]; tdpbf16ps tmm2, tmm5, tmm6; tdpbf16ps tmm3, tmm5, tmm7",
            "add {upper}, {step}; add {lower}, {step}; add {b}, 2048; dec {steps}",
            "jnz 3b",
            "tilestored [{c} + {wide}], tmm0; tilestored [{c} + {wide} + 64], tmm1",
            "tilestored [{c} + {wide} + 2048], tmm2; tilestored [{c} + {wide} + 2112], tmm3",
            upper = inout(reg) upper => _,
            lower = inout(reg) lower => _,
            row = in(reg) a.row_bytes(),
            step = in(reg) a.step_bytes(),
            b = inout(reg) b => _,
            steps = inout(reg) steps => _,
            c = in(reg) c,
            line = in(reg) 64usize,
            wide = in(reg) 128usize,
            add = in(reg) u32::from(add),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
