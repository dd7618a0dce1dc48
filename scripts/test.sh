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
