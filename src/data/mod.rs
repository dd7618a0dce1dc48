//! Data sets: from a folder of clips and captions to batches. Independent of any model.
//!
//! [`manifest`] lists the clips and their captions, [`survey`](mod@survey) opens each and gives it a [`bucket`] or a
//! [`rejection`], [`order`] decides the order of batches, and [`loader`] decodes clips. [`cache`] keeps encoded clips
//! and captions.

pub mod bucket;
pub mod cache;
pub mod caption;
pub mod dataset;
pub mod loader;
pub mod manifest;
pub mod order;
pub mod pixels;
pub mod reason;
pub mod rejection;
mod remarks;
pub mod survey;

pub use bucket::Bucket;
pub use dataset::Config;
pub use manifest::Entry;
pub use order::{Batch, Order};
pub use reason::Reason;
pub use rejection::{Rejection, Source};
pub use survey::{Facts, Found, Report, Sample, Totals, survey, survey_folder};
