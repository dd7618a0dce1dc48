//! Operations with backward passes of their own, against their formulas in f64 and against torch.

mod activation; // GELU and SiLU
mod chain; // gradients that go on from others
mod elementwise; // what the others are held to
mod norm; // layer and RMS norm by parts
mod residual; // gated residuals by parts
mod rotary; // pairs that turn
