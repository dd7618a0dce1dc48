#!/usr/bin/env bash
# Checks everything: formatting, lints, tests. Installs the system packages that are missing first.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/system.sh
install_system_packages

say "Formatting"
cargo fmt --check
say "Lints"
cargo clippy --locked --all-targets -- -D warnings
# With a CUDA toolkit at hand, what is built with it as well; nothing here runs on a GPU (docs/gpu.md).
if [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    say "Lints with CUDA"
    cargo clippy --locked --lib --bins --features cuda -- -D warnings
fi
say "Tests"
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked
else
    cargo test --locked
fi
