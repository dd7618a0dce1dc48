//! The one integration test binary: one link instead of ten.

mod architecture; // who may import whom
mod cli; // the program as a user runs it
mod config; // run files
mod data;
mod fuzz; // mutated input of every kind
mod rng; // torch's CPU generator, bit for bit
mod text; // captions as ids and embeddings
mod video; // decoding, selection, resizing and encoding of real files // layouts, captions, buckets, order
