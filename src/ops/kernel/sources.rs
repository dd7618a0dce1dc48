//! Source files of the kernels: `build.rs` compiles each as its own module, and the tests compile the same ones.

/// Paths from the repository's root.
pub const SOURCES: &[&str] = &[
    "src/nn/storage/decode.cu",
    "src/ops/activation.cu",
    "src/ops/attention/tiled.cu",
    "src/ops/dropout.cu",
    "src/ops/linear.cu",
    "src/ops/modulate.cu",
    "src/ops/norm.cu",
    "src/ops/residual.cu",
    "src/ops/rotary.cu",
    "src/ops/swiglu.cu",
    "src/optim/update.cu",
];
