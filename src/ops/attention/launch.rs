//! Launches of tiled.cu: attention where cuDNN does not run.

use candle_core::{DType, Result};

use super::Sizes;
use crate::ops::kernel::{Address, Argument, Grid, Launch, Structure};

/// Queries, and keys, per tile: same as in tiled.cu.
const SIDE: usize = 16;

/// Addresses read by the forward pass.
#[derive(Debug, Clone, Copy)]
pub struct Read {
    /// Queries (B, S, H, K).
    pub q: Address,
    /// Keys (B, L, H, K).
    pub k: Address,
    /// Values (B, L, H, K).
    pub v: Address,
}

/// Further addresses read by the backward pass.
#[derive(Debug, Clone, Copy)]
pub struct ReadBack {
    /// Output of the forward pass (B, S, H, K).
    pub out: Address,
    /// Log-sum-exp of each query (B, H, S), f32.
    pub log_sums: Address,
    /// Gradient of the output (B, S, H, K).
    pub grad: Address,
}

/// Addresses of the gradients.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// Gradient of the queries.
    pub dq: Address,
    /// Gradient of the keys.
    pub dk: Address,
    /// Gradient of the values.
    pub dv: Address,
}

/// A mask in f32.
#[derive(Debug, Clone, Copy, Default)]
pub struct Masked {
    /// Address, 0 without a mask.
    pub at: Address,
    /// Strides of samples, heads and queries, 0 along broadcast axes; keys are contiguous.
    pub strides: [usize; 3],
}

/// Attention by tiles of queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct Tiled {
    /// Counts of samples, queries, keys, heads and features.
    pub sizes: Sizes,
    /// Mask, if any.
    pub mask: Masked,
    /// Number format of all but the mask and the sums.
    pub dtype: DType,
}

/// `Sizes` of tiled.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct KernelArguments {
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
unsafe impl Structure for KernelArguments {}

impl Tiled {
    /// Launch computing the output and the log-sum-exp (B, H, S).
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn forward(&self, read: Read, [out, log_sums]: [Address; 2]) -> Result<Launch> {
        let Read { q, k, v } = read;
        let arguments = self.arguments(&[q, k, v, self.mask.at, out, log_sums]);
        self.launch("attention_forward", [self.sizes.queries, 2], arguments)
    }

    /// Launch computing sum(do o) of each query (B, H, S), f32: the first step of the backward pass.
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn along(&self, also: ReadBack, sums: Address) -> Result<Launch> {
        let arguments = self.arguments(&[also.out, also.grad, sums]);
        self.launch("attention_along", [self.sizes.queries, 0], arguments)
    }

    /// Launch computing dq, from the sums of [`Tiled::along`].
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn back_queries(&self, read: Read, also: ReadBack, sums: Address, dq: Address) -> Result<Launch> {
        let Read { q, k, v } = read;
        let arguments = self.arguments(&[q, k, v, self.mask.at, also.grad, also.log_sums, sums, dq]);
        self.launch("attention_back_queries", [self.sizes.queries, 4], arguments)
    }

    /// Launch computing dk and dv, from the sums of [`Tiled::along`].
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn back_keys(&self, read: Read, also: ReadBack, sums: Address, [dk, dv]: [Address; 2]) -> Result<Launch> {
        let Read { q, k, v } = read;
        let arguments = self.arguments(&[q, k, v, self.mask.at, also.grad, also.log_sums, sums, dk, dv]);
        self.launch("attention_back_keys", [self.sizes.keys, 4], arguments)
    }

    /// Launch writing output 0 and log-sum-exp infinity for fully masked queries, for kernels that do not do so as
    /// [`Tiled::forward`] does. `seeing` has a number for each row of the mask, 0 where all of it is minus infinity.
    ///
    /// # Errors
    /// Fails for types other than f32 and bf16.
    pub fn blind(&self, seeing: Address, [out, log_sums]: [Address; 2]) -> Result<Launch> {
        let mut by_rows = *self;
        by_rows.mask.strides = self.mask.strides.map(|stride| stride / self.sizes.keys.max(1));
        let arguments = by_rows.arguments(&[out, log_sums, seeing]);
        self.launch("attention_blind", [self.sizes.queries, 0], arguments)
    }

    /// Launch with one block per tile of `tokens` tokens of each head, and shared memory for `tiles` tiles.
    fn launch(&self, kernel: &str, [tokens, tiles]: [usize; 2], arguments: Vec<Argument>) -> Result<Launch> {
        let scores = tiles / 2; // tiles of scores, in addition to those of tokens
        let numbers = tiles * SIDE * (self.sizes.width + 1) + scores * SIDE * SIDE;
        let grid = Grid {
            blocks: [tokens.div_ceil(SIDE), self.sizes.batch * self.sizes.heads, 1],
            threads: SIDE * SIDE,
            shared: numbers * size_of::<f32>(),
        };
        Launch::of_type(kernel, self.dtype, grid, arguments)
    }

    /// Returns the addresses, followed by the sizes.
    fn arguments(&self, addresses: &[Address]) -> Vec<Argument> {
        let [of_samples, of_heads, of_queries] = self.mask.strides.map(|stride| stride as i64);
        let passed = KernelArguments {
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
