//! LTX-Video (2B: 0.9.0, 0.9.1, 0.9.5). Paper: arXiv:2501.00103. Checkpoints: `Lightricks/LTX-Video`, `-0.9.1`, `-0.9.5`.

mod bare;
pub mod dit;
pub mod vae;

pub use bare::bare;
