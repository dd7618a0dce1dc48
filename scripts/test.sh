#!/usr/bin/env bash
# Checks everything: formatting, lints, documentation, tests. Installs the system packages that are missing first. Tests
# that cannot run here are left out, and named at the end with what they need.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup/system.sh
install_system_packages

# Runs on several processes are built and tested where there is an MPI; nothing else needs one.
features=()
if install_mpi; then
    features=(--features mpi)
else
    say "No mpicc and mpirun: tests of several processes are left out"
fi

# A first build leaves no notes for the next one, which would cost it time.
[ -d "${CARGO_TARGET_DIR:-target}/debug" ] || export CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-0}"

say "Formatting"
cargo fmt --check
say "Lints"
cargo clippy --locked --lib --bins -- -D warnings
cargo clippy --locked --all-targets ${features[@]+"${features[@]}"} -- -D warnings
say "Documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --lib ${features[@]+"${features[@]}"}
# With a CUDA toolkit at hand, what is built with it as well; nothing here runs on a GPU (docs/gpu.md).
if [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
    say "Lints with CUDA"
    cargo clippy --locked --lib --bins --features cuda,gpu-check -- -D warnings
fi
say "Scripts"
if command -v ruff >/dev/null; then
    ruff check scripts
else
    say "No ruff: the Python of scripts/ is not checked"
fi
if command -v shellcheck >/dev/null; then
    shellcheck -x .ci/run scripts/*.sh scripts/*/*.sh
else
    say "No shellcheck: the shell scripts are not checked"
fi
say "Tests"
source scripts/setup/needs.sh
find_needs
passed=0
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --tests --locked --no-fail-fast ${features[@]+"${features[@]}"} --run-ignored all \
        -E "$(without_absent)" || passed=$?
else
    # With --exact, --skip takes whole names, too.
    cargo test --tests --locked --no-fail-fast ${features[@]+"${features[@]}"} -- --include-ignored --exact \
        ${absent[@]+"${absent[@]/#/--skip=}"} || passed=$?
fi
cargo test --doc --locked ${features[@]+"${features[@]}"} || passed=$?
tell_absent
exit "$passed"
