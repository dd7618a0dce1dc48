//! The one integration test binary: one link instead of ten.

mod architecture; // who may import whom
mod cogvideox_vae; // encode, decode, tiles
mod config; // run files
mod conv3d; // the convolution under the autoencoders
mod data;
mod rng; // torch's CPU generator, bit for bit
mod video; // decoding, selection, resizing and encoding of real files // layouts, captions, buckets, order
