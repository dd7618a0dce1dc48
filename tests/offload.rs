//! Frozen weights that leave memory while they are not needed: no result has another bit.

mod blocks;
mod keys;
mod ring;
mod runs;
