//! The one integration test binary: one link instead of ten.

mod video; // decoding, selection, resizing and encoding of real files
mod rng; // torch's CPU generator, bit for bit
mod data; // layouts, captions, buckets, order
