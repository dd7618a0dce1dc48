//! Products of bf16 matrices with sums in f32, on the CPU, by instructions made for them.
//!
//! | instructions | what they do | where |
//! |---|---|---|
//! | AMX, `tdpbf16ps` | 16 x 16 sums, 32 numbers along the inner axis each | Intel, from Sapphire Rapids on |
//! | AVX-512, `vdpbf16ps` | 16 sums, 2 numbers each | AMD, from Zen 4 on |
//!
//! Intel's `vdpbf16ps` has half the rate of its multiply-adds in f32, so it is not used there. Machines with neither
//! multiply in f32 (`gemm`).
//!
//! A block of c, 32 x 32, is the unit of work ([`block`]). Its operands lie in lines of 64 bytes ([`mod@line`]); b is packed
//! into them ([`pack`]), of a the rows are read where they are. Sums run along the inner axis in steps of 32 from the first
//! to the last, so that a row of c depends on its row of a and on b alone: neither on the rows around it, nor on threads.
//!
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS and VDPBF16PS.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod block;
mod emulated;
pub mod left;
pub mod line;
pub mod output;
pub mod over_rows;
pub mod pack;
pub mod product;
pub mod right;

use std::sync::OnceLock;

/// Instructions that multiply blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Intel's tiles.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// AVX-512 BF16.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The arithmetic of AMX in plain Rust, bit by bit: for tests, on any processor.
    Emulated,
}

impl Isa {
    /// Returns all that run on this machine, whether they are fast there or not.
    pub fn available() -> Vec<Self> {
        let mut available = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if amx::available() {
                available.push(Self::Amx);
            }
            if avx512::available() {
                available.push(Self::Avx512);
            }
        }
        available.push(Self::Emulated);
        available
    }

    /// Returns the one to multiply by; None where products in f32 are the fastest.
    pub fn detect() -> Option<Self> {
        static DETECTED: OnceLock<Option<Isa>> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                if amx::available() {
                    return Some(Self::Amx);
                }
                if avx512::available() && avx512::is_fast() {
                    return Some(Self::Avx512);
                }
            }
            None
        })
    }

    /// Returns its name.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => "AMX BF16",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512 BF16",
            Self::Emulated => "emulated AMX BF16",
        }
    }
}
