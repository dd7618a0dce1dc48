#!/usr/bin/env bash
# Checks everything: formatting, lints, tests. Installs the system packages that are missing first. What a test had to leave
# out here is listed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/system.sh
install_system_packages

# Runs on several processes are built and tested where there is an MPI; nothing else needs one.
features=()
if install_mpi; then
    features=(--features mpi)
else
    say "No mpicc and mpirun: runs on several processes are not tested"
fi

say "Formatting"
cargo fmt --check
say "Lints"
cargo clippy --locked --lib --bins -- -D warnings
cargo clippy --locked --all-targets ${features[@]+"${features[@]}"} -- -D warnings
# With a CUDA toolkit at hand, what is built with it as well; nothing here runs on a GPU (docs/gpu.md).
if [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    say "Lints with CUDA"
    cargo clippy --locked --lib --bins --features cuda -- -D warnings
fi
say "Tests"
VTRAIN_SKIPPED=$(mktemp)
export VTRAIN_SKIPPED
trap 'rm -f "$VTRAIN_SKIPPED"' EXIT
passed=0
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --no-fail-fast ${features[@]+"${features[@]}"} || passed=$?
else
    cargo test --locked --no-fail-fast ${features[@]+"${features[@]}"} || passed=$?
fi
if [ -s "$VTRAIN_SKIPPED" ]; then
    say "Left out here, in whole or in part:"
    sort -u "$VTRAIN_SKIPPED" >&2
fi
exit "$passed"
