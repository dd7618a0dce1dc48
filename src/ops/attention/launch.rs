//! Launches of tiled.cu: attention where cuDNN does not do it.

use candle_core::{DType, Result};

use super::Sizes;
use crate::ops::kernel::{Address, Argument, Grid, Launch, Structure};

/// Queries, and keys, of a tile: as in tiled.cu.
const SIDE: usize = 16;

/// Addresses of what the way forward reads.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    pub q: Address,
    pub k: Address,
    pub v: Address,
}

/// Addresses of what the way back reads besides.
#[derive(Debug, Clone, Copy)]
pub struct ReadBack {
    pub out: Address,
    pub log_sums: Address,
    pub grad: Address,
}

/// Addresses of the gradients.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    pub dq: Address,
    pub dk: Address,
    pub dv: Address,
}

/// A mask in f32.
#[derive(Debug, Clone, Copy, Default)]
pub struct Masked {
    /// 0 where there is none.
    pub at: Address,
    /// Of samples, heads and queries, 0 where it is the same for all; keys follow each other.
    pub strides: [usize; 3],
}

/// Attention by tiles of queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct Tiled {
    pub sizes: Sizes,
    pub mask: Masked,
    pub dtype: DType,
}

/// `Sizes` of tiled.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Passed {
    queries: i32,
    keys: i32,
    heads: i32,
    width: i32,
    scale: f32,
    of_samples: i64,
    of_heads: i64,
    of_queries: i64,
}

// SAFETY: the same fields in the same order as in tiled.cu.
unsafe impl Structure for Passed {}

impl Tiled {
    /// The output, and the log-sum-exp (B, H, S).
    ///
    /// # Errors
    /// Another type than f32 and bf16.
    pub fn forward(&self, read: Read, [out, log_sums]: [Address; 2]) -> Result<Launch> {
        let Read { q, k, v } = read;
        let arguments = self.arguments(&[q, k, v, self.mask.at, out, log_sums]);
        self.launch("attention_forward", [self.sizes.queries, 2], arguments)
    }

    /// sum(do o) of each query (B, H, S), f32: the first step back.
    ///
    /// # Errors
    /// Another type than f32 and bf16.
    pub fn along(&self, also: ReadBack, sums: Address) -> Result<Launch> {
        let arguments = self.arguments(&[also.out, also.grad, sums]);
        self.launch("attention_along", [self.sizes.queries, 0], arguments)
    }

    /// dq, from the sums of [`Tiled::along`].
    ///
    /// # Errors
    /// Another type than f32 and bf16.
    pub fn back_queries(&self, read: Read, also: ReadBack, sums: Address, dq: Address) -> Result<Launch> {
        let Read { q, k, v } = read;
        let arguments = self.arguments(&[q, k, v, self.mask.at, also.grad, also.log_sums, sums, dq]);
        self.launch("attention_back_queries", [self.sizes.queries, 4], arguments)
    }

    /// dk and dv, from the sums of [`Tiled::along`].
    ///
    /// # Errors
    /// Another type than f32 and bf16.
    pub fn back_keys(&self, read: Read, also: ReadBack, sums: Address, [dk, dv]: [Address; 2]) -> Result<Launch> {
        let Read { q, k, v } = read;
        let arguments = self.arguments(&[q, k, v, self.mask.at, also.grad, also.log_sums, sums, dk, dv]);
        self.launch("attention_back_keys", [self.sizes.keys, 4], arguments)
    }

    /// Output and log-sum-exp of queries that see no key, for whoever does not leave them as [`Tiled::forward`] does: 0 and
    /// infinity. `seeing` has a number for each row of the mask, 0 where all of it is minus infinity.
    ///
    /// # Errors
    /// Another type than f32 and bf16.
    pub fn blind(&self, seeing: Address, [out, log_sums]: [Address; 2]) -> Result<Launch> {
        let mut by_rows = *self;
        by_rows.mask.strides = self.mask.strides.map(|stride| stride / self.sizes.keys.max(1));
        let arguments = by_rows.arguments(&[out, log_sums, seeing]);
        self.launch("attention_blind", [self.sizes.queries, 0], arguments)
    }

    /// A block for each tile of so many tokens of each head, with memory for so many tiles.
    fn launch(&self, kernel: &str, [tokens, tiles]: [usize; 2], arguments: Vec<Argument>) -> Result<Launch> {
        let scores = tiles / 2; // tiles of scores beside those of tokens
        let numbers = tiles * SIDE * (self.sizes.width + 1) + scores * SIDE * SIDE;
        let grid = Grid {
            blocks: [tokens.div_ceil(SIDE), self.sizes.batch * self.sizes.heads, 1],
            threads: SIDE * SIDE,
            shared: numbers * size_of::<f32>(),
        };
        Launch::of_type(kernel, self.dtype, grid, arguments)
    }

    /// The addresses, and the sizes behind them.
    fn arguments(&self, addresses: &[Address]) -> Vec<Argument> {
        let [of_samples, of_heads, of_queries] = self.mask.strides.map(|stride| stride as i64);
        let passed = Passed {
            queries: self.sizes.queries as i32,
            keys: self.sizes.keys as i32,
            heads: self.sizes.heads as i32,
            width: self.sizes.width as i32,
            scale: self.sizes.scale(),
            of_samples,
            of_heads,
            of_queries,
        };
        let addresses = addresses.iter().map(|address| Argument::from(*address));
        addresses.chain([passed.into()]).collect()
    }
}
