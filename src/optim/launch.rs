//! Launches of update.cu, over all adapters at once.
//!
//! Tensors are cut into pieces of equal size, a block each; a table in the device's memory holds their addresses.

use crate::ops::kernel::{Address, Grid, Launch, Structure};

/// Numbers of a piece: same as in update.cu.
pub const PIECE: usize = 1 << 14;

/// Threads of a block: same as in update.cu.
const THREADS: usize = 256;

/// `Update` of update.cu: factors that all numbers of a step share.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Factor of gradients, from clipping.
    pub scale: f32,
    /// Factor of variables, from weight decay.
    pub decay: f32,
    /// 1 - beta1.
    pub weight1: f32,
    /// beta2.
    pub beta2: f32,
    /// 1 - beta2.
    pub weight2: f32,
    /// Learning rate over the first moment's bias correction.
    pub step_size: f32,
    /// Root of the second moment's bias correction.
    pub correction: f32,
    /// Number added to the root of the second moment.
    pub epsilon: f32,
}

// SAFETY: the same fields in the same order as in update.cu.
unsafe impl Structure for Update {}

/// Rows of tensors; those of a row are processed together.
#[derive(Debug)]
pub struct Table {
    /// Table in the kernels' layout: pieces before each row, and in total; lengths; addresses, kind by kind.
    pub numbers: Vec<i64>,
    /// Rows.
    pub count: usize,
    /// Pieces of all rows together.
    pub pieces: usize,
}

impl Table {
    /// Table of rows of N tensors, each given as its length and the tensors' addresses.
    pub fn new<const N: usize>(rows: &[(usize, [Address; N])]) -> Self {
        let (mut firsts, mut lengths, mut places) = (vec![0], Vec::new(), vec![Vec::new(); N]);
        let mut pieces = 0;
        for (length, addresses) in rows {
            pieces += length.div_ceil(PIECE);
            firsts.push(pieces as i64);
            lengths.push(*length as i64);
            for (address, places) in addresses.iter().zip(&mut places) {
                places.push(*address as i64);
            }
        }
        Self {
            numbers: [firsts, lengths, places.concat()].concat(),
            count: rows.len(),
            pieces,
        }
    }

    /// Launch of a step of AdamW; rows are variable, gradient and both moments, f32. The table's numbers are at
    /// `table`.
    pub fn adamw(&self, table: Address, update: Update) -> Launch {
        Launch {
            kernel: "adamw".into(),
            grid: self.grid(),
            arguments: vec![table.into(), (self.count as i32).into(), update.into()],
        }
    }

    /// Launch of a step of AdamW with moments in 8 bits; rows are variable and gradient, f32, then the codes and the largest
    /// magnitudes of the first moment's blocks, and the second's. The table's numbers are at `table`, the values of the
    /// signed map and behind them those of the unsigned one at `maps`.
    pub fn adamw8bit(&self, table: Address, update: Update, maps: Address) -> Launch {
        Launch {
            kernel: "adamw8bit".into(),
            grid: self.grid(),
            arguments: vec![table.into(), (self.count as i32).into(), update.into(), maps.into()],
        }
    }

    /// Launch of the sum of the squares of each piece, in f64; rows are one tensor, f32. The table's numbers are at
    /// `table`.
    pub fn square_sums(&self, table: Address, sums: Address) -> Launch {
        Launch {
            kernel: "square_sums".into(),
            grid: self.grid(),
            arguments: vec![table.into(), (self.count as i32).into(), sums.into()],
        }
    }

    fn grid(&self) -> Grid {
        Grid {
            blocks: [self.pieces, 1, 1],
            threads: THREADS,
            shared: 0,
        }
    }
}
