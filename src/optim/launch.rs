//! Launches of update.cu: all adapters at once.
//!
//! Tensors are cut into pieces of one size, a block each; a table in the device's memory says where they lie.

use crate::ops::kernel::{Address, Grid, Launch, Structure};

/// Numbers of a piece: as in update.cu.
pub const PIECE: usize = 1 << 14;

/// Threads of a block: as in update.cu.
const THREADS: usize = 256;

/// `Update` of update.cu: what all numbers of a step share.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Update {
    pub scale: f32,
    pub decay: f32,
    pub weight1: f32,
    pub beta2: f32,
    pub weight2: f32,
    pub step_size: f32,
    pub correction: f32,
    pub epsilon: f32,
}

// SAFETY: the same fields in the same order as in update.cu.
unsafe impl Structure for Update {}

/// Tensors in rows: those of a row are of one size and go together.
#[derive(Debug)]
pub struct Table {
    /// What the kernels read: pieces before each row, and of all; lengths; addresses, kind by kind.
    pub numbers: Vec<i64>,
    /// Rows.
    pub count: usize,
    pub pieces: usize,
}

impl Table {
    /// A table of rows of N tensors, each given as its length and the tensors' addresses.
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

    /// A step of AdamW; rows are variable, gradient and both moments, f32. The table's numbers lie at `table`.
    pub fn adamw(&self, table: Address, update: Update) -> Launch {
        Launch {
            kernel: "adamw".into(),
            grid: self.grid(),
            arguments: vec![table.into(), (self.count as i32).into(), update.into()],
        }
    }

    /// The sum of the squares of each piece, in f64; rows are one tensor, f32. The table's numbers lie at `table`.
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
