//! The one integration test binary: one link instead of ten.

mod architecture; // who may import whom
mod cogvideox_vae; // encode, decode, tiles, and the convolution under them
mod config; // run files
mod data;
mod rng; // torch's CPU generator, bit for bit
mod video; // decoding, selection, resizing and encoding of real files // layouts, captions, buckets, order
