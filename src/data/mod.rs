//! Data sets: from a folder of clips and captions to batches. Knows no model.
//!
//! [`manifest`] reads which clips there are and what they are captioned, [`survey`](mod@survey) opens each and
//! gives it a [`bucket`] or a [`refusal`], [`order`] says which batch comes when, and [`loader`]
//! decodes it. [`cache`] keeps what became of clips and captions.

pub mod bucket;
pub mod cache;
pub mod caption;
pub mod dataset;
pub mod loader;
pub mod manifest;
pub mod order;
pub mod pixels;
pub mod reason;
pub mod refusal;
mod remarks;
pub mod survey;

pub use bucket::Bucket;
pub use dataset::Config;
pub use manifest::Entry;
pub use order::{Batch, Order};
pub use reason::Reason;
pub use refusal::{Refusal, Source};
pub use survey::{Facts, Found, Report, Sample, Totals, survey, survey_folder};
