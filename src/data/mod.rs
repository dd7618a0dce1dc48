//! Data sets: from a folder of clips and captions to batches. Knows no model.

pub mod cache;
pub mod dataset;
