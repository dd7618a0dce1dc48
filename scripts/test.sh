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
say "Tests"
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked
else
    cargo test --locked
fi

# Several processes, where there is an MPI to build against and to start them with.
if command -v mpicc >/dev/null && command -v mpirun >/dev/null; then
    say "Lints and tests of several processes (feature mpi)"
    cargo clippy --locked --all-targets --features mpi -- -D warnings
    cargo test --locked --features mpi dist::
else
    say "No mpicc and mpirun: runs on several processes are not tested"
fi
