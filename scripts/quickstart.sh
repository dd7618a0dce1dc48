#!/usr/bin/env bash
# From a fresh checkout to the first result: installs the system packages that are missing, builds, and shows what
# would be trained on for the clips that ship with vtrain.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/system.sh
install_system_packages

say "Building (the first time takes some minutes)"
cargo build --release --locked
vtrain=${CARGO_TARGET_DIR:-target}/release/vtrain

say "vtrain check-dataset --config configs/cogvideox/tiny.yaml"
"$vtrain" check-dataset --config configs/cogvideox/tiny.yaml

say "Done. The program is $vtrain; try it on clips of yours: $vtrain check-dataset FOLDER"
